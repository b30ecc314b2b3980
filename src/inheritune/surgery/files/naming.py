"""Which tensor of which checkpoint becomes which tensor of the new one, by their names alone.

Where the layers are is read from the names, not from the model class: checkpoints may leave out the base model's prefix
or store weights under older names, which transformers maps when it loads them.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
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

_PREDICTION = r"(^|\.)(mtp|nextn)(_\w+)?\."
"""In the names of weights of layers that predict further tokens."""

Chosen = dict[str, tuple[str, str]]
"""For each tensor of the new checkpoint: the model of the plan it comes from, and its name there."""


def choose_tensors(names: Mapping[str, Collection[str]], prefixes: Mapping[str, str], plan: LayerPlan) -> Chosen:
    """Return where each tensor of the new checkpoint comes from: those outside the layers, then layer by layer.

    Layers that predict further tokens are left out, as in the configuration: DeepSeek's behind the last, Qwen's `mtp`.

    Args:
        names: of all tensors of a checkpoint, by the model's name in the plan.
        prefixes: what stands before the number of a layer there, see `layers_prefix`.
        plan: every row from a model in `names`, whole.
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
