"""Which tensors of which checkpoints become the new one, by their names, and whether they are all that it looks for.

Where the layers are is read from the names, not from the model class: checkpoints may leave out the base model's prefix
or store weights under older names, which transformers maps when it loads them. Whether all is there, in the right
shapes and kinds, transformers' own loading answers: it is given tensors of the stored names and shapes that have no
data (the meta device), so renamed, fused and split weights count as they do when the new checkpoint is loaded.
"""

from __future__ import annotations

import copy
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from inheritune.checkpoints.copying import same_bytes
from inheritune.checkpoints.stored import StoredTensor, read_safetensors
from inheritune.decoder import Decoder
from inheritune.decoder.source import Place
from inheritune.decoder.streaming import no_progress_bar
from inheritune.errors import ModelError, PlanError
from inheritune.layers import ranges
from inheritune.surgery.build import UNTIE
from inheritune.surgery.config.blueprint import Draft
from inheritune.surgery.moved import moved_weights
from inheritune.surgery.plan.layer_plan import LayerPlan

_PREDICTION = r"(^|\.)(mtp|nextn)(_\w+)?\."
"""In the names of weights of layers that predict further tokens."""

Chosen = dict[str, tuple[str, str]]
"""For each tensor of the new checkpoint: the model of the plan it comes from, and its name there."""


def choose_tensors(names: Mapping[str, Collection[str]], prefixes: Mapping[str, str], plan: LayerPlan) -> Chosen:
    """Return where each tensor of the new checkpoint comes from: those outside the layers, then layer by layer.

    Layers that predict further tokens are left out, as in the configuration: DeepSeek's behind the last, Qwen's `mtp`.
    `names` are those of all tensors of a checkpoint, and `prefixes` what stands before the number of a layer there
    (`layers_prefix`), by the model's name in the plan, which takes whole layers.
    """
    prefix = prefixes[plan.rest]
    left_out = re.compile(rf"^{re.escape(prefix)}\.\d+\.|{_PREDICTION}")
    chosen: Chosen = {name: (plan.rest, name) for name in names[plan.rest] if not left_out.search(name)}
    for index, row in enumerate(plan):
        if row.model is not None:
            start = f"{prefixes[row.model]}.{row.source}."
            own = [name for name in names[row.model] if name.startswith(start)]
            chosen |= {f"{prefix}.{index}.{name.removeprefix(start)}": (row.model, name) for name in own}
    return chosen


def change_moved(tensors: dict[str, StoredTensor], draft: Draft, prefix: str, scratch: Path) -> None:
    """Put changed copies, in files of the folder `scratch`, in the place of weights that a move changes.

    `tensors` are those of the new checkpoint, whose layers are stored under `prefix`; they are read one at a time.

    Raises:
        PlanError: the checkpoint does not store such a weight under its own name.
    """
    for key, change in moved_weights(draft.config, draft.plan).items():
        number, _, name = key.partition(".")
        if (stored := f"{prefix}.{key}") not in tensors:
            raise PlanError(f"the checkpoint has no {name} by this name, which moving a layer changes: use inherit")
        weight = change(partial(_read_weight, tensors, f"{prefix}.{number}."))
        file = scratch / f"moved-{key}.safetensors"
        save_file({stored: weight.contiguous()}, file)
        tensors[stored] = read_safetensors(file)[stored]


def _read_weight(tensors: Mapping[str, StoredTensor], block: str, name: str) -> Tensor:
    return tensors[block + name][...]


def drop_tied(tensors: dict[str, StoredTensor], new: Decoder, folder: str | Path) -> None:
    """Leave out, in place, of what will be stored by name what the model to be, `new`, ties to another name.

    Raises:
        ModelError: a tensor holds other values than the one that it is tied to.
    """
    first: dict[int, str] = {}
    for name, weight in new.model.state_dict(keep_vars=True).items():
        if name not in tensors or first.setdefault(id(weight), name) == name:
            continue
        other = first[id(weight)]
        if not same_bytes(tensors[name], tensors[other]):
            raise ModelError(f"{folder} stores {name} and {other} as two different weights, one by its config: {UNTIE}")
        del tensors[name]


def layers_prefix(names: Iterable[str], depth: int, folder: str | Path) -> str:
    """Return the outermost name under which layers 0 .. depth-1 are stored, for example `model.layers`.

    Raises:
        ModelError: they are not all there.
    """
    numbers: dict[str, set[int]] = defaultdict(set)
    for name in names:
        for found in re.finditer(r"\.(\d+)\.", name):
            numbers[name[: found.start()]].add(int(found[1]))
    lists = [prefix for prefix, found in numbers.items() if found.issuperset(range(depth))]
    if not lists:
        outermost = min(numbers, key=lambda prefix: (prefix.count("."), -len(numbers[prefix]), prefix), default="")
        there = f"of layers {ranges(sorted(numbers[outermost]))} ({outermost})" if outermost else "of no layer"
        raise ModelError(f"{folder} has weights {there}: its config.json says it has layers 0-{depth - 1}")
    return min(lists, key=lambda prefix: (prefix.count("."), prefix))


def check_complete(tensors: Mapping[str, StoredTensor], draft: Draft, places: Mapping[str, Place]) -> None:
    """Confirm that a checkpoint of `tensors` by name gives the new model every weight; its layers are from `places`.

    Raises:
        ModelError: a weight is missing, of another shape, or of another kind of number (another precision will do).
    """
    model = draft.new.model
    if _is_plain(tensors, model):
        return

    def stored_as(key: str) -> tuple[str, str]:
        """Return what the user calls the checkpoint that a weight comes from, and the weight's name there."""
        owner, name = draft.plan.origin(key, draft.new.blocks_path) or (draft.plan.rest, key)
        return places[owner].name, name

    info = _load_shapes(model, tensors)
    if info["mismatched_keys"]:
        name, shape, expected = min(info["mismatched_keys"])
        folder, stored = stored_as(name)
        raise ModelError(f"{folder} stores {stored} as {list(shape)}: its config.json asks for {list(expected)}")
    if missing := sorted(info["missing_keys"], key=list(model.state_dict()).index):
        folder, stored = stored_as(missing[0])
        raise ModelError(f"the checkpoint {folder} lacks {len(missing)} of the weights asked for, {stored!r} first")
    floating = {name: weight.dtype.is_floating_point for name, weight in model.state_dict().items()}
    for key, tensor in tensors.items():
        floats = floating.get(key, True if all(floating.values()) else None)  # DeepSeek-V4 renames whole numbers
        if key not in info["unexpected_keys"] and floats not in (None, _is_float(tensor.kind)):
            folder, stored = stored_as(key)
            expected = "floating-point numbers" if floats else "whole numbers"
            raise ModelError(f"{folder} stores {stored} as {tensor.kind}: expected {expected}")


def _is_plain(tensors: Mapping[str, StoredTensor], model: PreTrainedModel) -> bool:
    """Return whether every weight is stored under its own name, as it is; loading takes 0.2 s more for 2 GB."""
    weights = model.state_dict(keep_vars=True)
    stored = {id(weights[key]) for key in tensors if key in weights}
    return all(id(weight) in stored for weight in weights.values()) and all(
        key in weights
        and tuple(weights[key].shape) == tensor.shape
        and weights[key].dtype.is_floating_point == _is_float(tensor.kind)
        for key, tensor in tensors.items()
    )


def _is_float(kind: str) -> bool:
    return kind.startswith(("F", "BF"))


def _load_shapes(model: PreTrainedModel, tensors: Mapping[str, StoredTensor]) -> dict[str, Any]:
    """Let transformers load tensors of the stored names and shapes without data; return what it says of them."""
    blank = {key: torch.empty(tensor.shape, dtype=model.dtype, device="meta") for key, tensor in tensors.items()}
    with no_progress_bar():
        _, info = type(model).from_pretrained(
            None,
            config=copy.deepcopy(model.config),
            state_dict=blank,
            dtype=model.dtype,
            device_map={"": "meta"},
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    return info  # what could not be put together of its parts is missing
