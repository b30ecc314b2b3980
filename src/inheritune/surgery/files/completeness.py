"""Is what will be copied all that the new model looks for, in the right shapes and kinds?

transformers' own loading answers: it is given tensors of the stored names and shapes that have no data (PyTorch's meta
device), so renamed, fused and split weights count as they do when the new checkpoint is loaded.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inheritune.decoder.streaming import no_progress_bar
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
        origins: where it comes from, and the new model, on the meta device.

    Raises:
        ModelError: a weight is missing, of another shape, or of another kind of number (another precision will do).
    """
    model = origins.new.model
    if _is_plain(tensors, model):
        return
    info = _load_shapes(model, tensors)
    if info["mismatched_keys"]:
        name, shape, expected = min(info["mismatched_keys"])
        folder, stored = origins.find(name)
        raise ModelError(f"{folder} stores {stored} as {list(shape)}: its config.json asks for {list(expected)}")
    if missing := sorted(info["missing_keys"], key=list(model.state_dict()).index):
        folder, stored = origins.find(missing[0])
        raise ModelError(f"the checkpoint {folder} lacks {len(missing)} of the weights asked for, {stored!r} first")
    _check_kinds({name: each for name, each in tensors.items() if name not in info["unexpected_keys"]}, origins)


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


def _check_kinds(tensors: Mapping[str, StoredTensor], origins: Origins) -> None:
    """Refuse whole numbers for weights that are none, and the reverse, where a name or the model tells which it is."""
    floating = {name: weight.dtype.is_floating_point for name, weight in origins.new.model.state_dict().items()}
    for key, tensor in tensors.items():
        floats = floating.get(key, True if all(floating.values()) else None)  # DeepSeek-V4 renames whole numbers
        if floats is not None and floats != _is_float(tensor.kind):
            folder, stored = origins.find(key)
            expected = "floating-point numbers" if floats else "whole numbers"
            raise ModelError(f"{folder} stores {stored} as {tensor.kind}: expected {expected}")


def _is_float(kind: str) -> bool:
    return kind.startswith(("F", "BF"))


def _load_shapes(model: PreTrainedModel, tensors: Mapping[str, StoredTensor]) -> dict[str, Any]:
    """Let transformers load tensors of the stored names and shapes without data; return what it says of them."""
    import torch

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
