"""Is what will be copied all that the new model looks for, in the right shapes and kinds?

transformers' own loading answers: it is given tensors of the stored names and shapes that have no data (PyTorch's meta
device), so renamed, fused and split weights count as they do when the new checkpoint is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from inheritune.decoder.streaming import conversions, model_names, no_progress_bar
from inheritune.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from inheritune.checkpoints.stored import StoredTensor
    from inheritune.decoder import Decoder
    from inheritune.surgery.plan.layer_plan import LayerPlan


@dataclass(frozen=True)
class Origins:
    """Says of a weight of the new model what it is called in the checkpoint it comes from.

    Attributes:
        plan: where each layer comes from.
        new: the model to be.
        folders: of the checkpoints, by the model's name in the plan.
    """

    plan: LayerPlan
    new: Decoder
    folders: Mapping[str, str | Path]

    def find(self, name: str) -> tuple[str | Path, str]:
        """Return the checkpoint's folder and the weight's name there."""
        for index, row in enumerate(self.plan):
            prefix = self.new.block_prefix(index)
            if row.model is not None and name.startswith(prefix):
                return self.folders[row.model], f"{self.new.blocks_path}.{row.source}.{name.removeprefix(prefix)}"
        return self.folders[self.plan.rest], name


def check_complete(tensors: Mapping[str, StoredTensor], origins: Origins) -> None:
    """Confirm that a checkpoint of `tensors` gives the new model every weight it has.

    Args:
        tensors: what will be stored, by name.
        origins: where it comes from. The new model, on the meta device, is loaded with it.

    Raises:
        ModelError: a weight is missing, of another shape, or of another kind of number (another precision will do).
    """
    model = origins.new.model
    tied = _same_weights(model)
    if _is_plain(tensors, model, tied):
        return
    _check_kinds(tensors, origins)
    missing, mismatched = _load_shapes(model, tensors)
    if mismatched:
        name, found, expected = min(mismatched)
        folder, stored = origins.find(name)
        raise ModelError(f"{folder} stores {stored} as {list(found)}: its config.json asks for {list(expected)}")
    missing = _without_ignored(model, (name for name in missing if tied[name] <= missing))
    if missing:
        first = min(missing, key=list(tied).index)
        folder, stored = origins.find(first)
        raise ModelError(f"the checkpoint {folder} lacks {len(missing)} of the weights asked for, {stored!r} first")


def _is_plain(tensors: Mapping[str, StoredTensor], model: PreTrainedModel, tied: Mapping[str, set[str]]) -> bool:
    """Return whether every weight is stored under its own name, as it is: transformers' rules cost more than a look."""
    weights = model.state_dict()
    return all(any(name in tensors for name in names) for names in tied.values()) and all(
        key in weights
        and tuple(weights[key].shape) == tensor.shape
        and weights[key].dtype.is_floating_point == _is_float(tensor.kind)
        for key, tensor in tensors.items()
    )


def _check_kinds(tensors: Mapping[str, StoredTensor], origins: Origins) -> None:
    model = origins.new.model
    weights = model.state_dict()
    for key, names in model_names(model, conversions(model), tensors).items():
        found = tensors[key].kind
        if names[0] in weights and weights[names[0]].dtype.is_floating_point != _is_float(found):
            folder, stored = origins.find(names[0])
            expected = "floating-point numbers" if weights[names[0]].dtype.is_floating_point else "whole numbers"
            raise ModelError(f"{folder} stores {stored} as {found}: expected {expected}")


def _is_float(kind: str) -> bool:
    return kind.startswith(("F", "BF"))


def _same_weights(model: PreTrainedModel) -> dict[str, set[str]]:
    """Return for each name in the model's state the names of the same weight: itself, and those it is tied to."""
    groups: dict[int, set[str]] = {}
    state = model.state_dict(keep_vars=True)
    for name, weight in state.items():
        groups.setdefault(id(weight), set()).add(name)
    return {name: groups[id(weight)] for name, weight in state.items()}


def _load_shapes(
    model: PreTrainedModel, tensors: Mapping[str, StoredTensor]
) -> tuple[set[str], set[tuple[str, tuple[int, ...], tuple[int, ...]]]]:
    """Load tensors without data; return the names of what is missing, and name and shapes of what does not fit."""
    import torch
    from transformers.core_model_loading import convert_and_load_state_dict_in_model as load
    from transformers.modeling_utils import LoadStateDictConfig

    settings = LoadStateDictConfig(dtype=model.dtype, weight_mapping=conversions(model), device_map={"": "meta"})
    blank = {key: torch.empty(tensor.shape, dtype=model.dtype, device="meta") for key, tensor in tensors.items()}
    with no_progress_bar():
        info, _ = load(model=model, state_dict=blank, load_config=settings)
    mismatched = {(name, tuple(found), tuple(expected)) for name, found, expected in info.mismatched_keys}
    return set(info.missing_keys), mismatched  # what could not be put together of its parts is missing


def _without_ignored(model: PreTrainedModel, names: Iterable[str]) -> set[str]:
    """Leave out what the model says its checkpoints need not hold."""
    patterns = model._keys_to_ignore_on_load_missing or ()
    return {name for name in names if not any(re.search(pattern, name) for pattern in patterns)}
