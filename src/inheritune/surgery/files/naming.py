"""Which tensor of which checkpoint becomes which tensor of the new one, by their names alone.

Where the layers are is read from the names, not from the model class: checkpoints may leave out the base model's prefix
or store weights under older names, which transformers maps when it loads them.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from inheritune.errors import ModelError
from inheritune.layers import ranges
from inheritune.surgery.build import UNTIE
from inheritune.surgery.files.values import same_bytes

if TYPE_CHECKING:
    from inheritune.checkpoints.stored import StoredTensor
    from inheritune.decoder import Decoder
    from inheritune.surgery.plan.layer_plan import LayerPlan

_PREDICTION = re.compile(r"(^|\.)(mtp|nextn)(_\w+)?\.")
"""In the names of weights of layers that predict further tokens."""

Chosen = dict[str, tuple[str, str]]
"""For each tensor of the new checkpoint: the model of the plan it comes from, and its name there."""


@dataclass(frozen=True)
class Layout:
    """The names in one checkpoint, sorted by what they belong to.

    Attributes:
        prefix: what stands before the number of a layer, for example `model.layers`.
        outside: the names that belong to no layer.
        layers: for each number, the names of its tensors by what stands behind the number.
    """

    prefix: str
    outside: tuple[str, ...]
    layers: Mapping[int, Mapping[str, str]]

    @classmethod
    def of(cls, names: Iterable[str], depth: int, folder: str | Path) -> Layout:
        """Sort the names of the checkpoint in `folder`, whose model has `depth` layers.

        Raises:
            ModelError: its layers cannot be found among the names.
        """
        names = list(names)
        prefix = _layers_prefix(names, depth, folder)
        layers: dict[int, dict[str, str]] = defaultdict(dict)
        outside = []
        for name in names:
            found = re.fullmatch(rf"{re.escape(prefix)}\.(\d+)\.(.+)", name)
            if found:
                layers[int(found[1])][found[2]] = name
            else:
                outside.append(name)
        return cls(prefix, tuple(outside), layers)


def choose_tensors(layouts: Mapping[str, Layout], plan: LayerPlan) -> Chosen:
    """Return where each tensor of the new checkpoint comes from: those outside the layers, then layer by layer.

    Layers that predict further tokens are left out, as in the configuration: DeepSeek's behind the last, Qwen's `mtp`.

    Args:
        layouts: by the model's name in the plan.
        plan: every row from a model in `layouts`, whole.
    """
    rest = layouts[plan.rest]
    chosen: Chosen = {name: (plan.rest, name) for name in rest.outside if not _PREDICTION.search(name)}
    for index, row in enumerate(plan):
        if row.model is not None and row.source is not None:
            layer = layouts[row.model].layers[row.source]
            chosen |= {f"{rest.prefix}.{index}.{name}": (row.model, key) for name, key in layer.items()}
    return chosen


def check_same_names(layouts: Mapping[str, Layout], plan: LayerPlan, new: Decoder) -> None:
    """Confirm that both checkpoints of a plan name the tensors of a layer alike.

    Versions of transformers differ in how they store some weights (experts one by one or together); a checkpoint with
    both ways would not load.

    Args:
        layouts: by the model's name in the plan.
        plan: which layers come from which model.
        new: the model to be, weightless.

    Raises:
        ModelError: they differ.
    """
    known = {_without_numbers(name) for layer in layouts[plan.rest].layers.values() for name in layer}
    for index, row in enumerate(plan):
        if row.model in (None, plan.rest) or row.source is None:
            continue
        names = layouts[row.model].layers[row.source]
        if names.keys() >= new.blocks[index].state_dict().keys():  # the model's own names always load
            continue
        other = next((name for name in names if _without_numbers(name) not in known), None)
        if other is not None:
            raise ModelError(
                f"the {row.model} stores its layers under other names ({other}) than the {plan.rest}: load and save "
                "both with the same version of transformers, or use inherit"
            )


def drop_tied(tensors: dict[str, StoredTensor], new: Decoder, folder: str | Path) -> None:
    """Leave out, in place, tensors that need no place of their own, because the model ties them to another name.

    Args:
        tensors: what will be stored, by name.
        new: the model to be, weightless.
        folder: the checkpoint they come from, as the user calls it.

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


def _without_numbers(name: str) -> str:
    return re.sub(r"\.\d+(?=\.)", ".0", name)


def _layers_prefix(names: Iterable[str], depth: int, folder: str | Path) -> str:
    """Return the outermost name under which layers 0 .. depth-1 are stored, for example `model.layers`."""
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
