"""Which layers a user asks for: a count, a range, a list, a recommendation or the analysis that holds one."""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from inheritune.errors import PlanError
from inheritune.spectra.folder import SPECTRA, load_recommendation

_EXPECTED = (
    "expected a count (12), a range with its end excluded (0:12) or a list (0,2,4), "
    f"or an analysis folder (with {SPECTRA})"
)


class Kept(Protocol):
    """Layers that are recommended to keep: a `Recommendation`, or what a recipe has of it."""

    @property
    def depth(self) -> int:
        """The number of layers of the analysed model."""

    @property
    def keep(self) -> tuple[int, ...]:
        """The layers that stay."""


Layers: TypeAlias = int | str | Path | Kept | Iterable[int]
"""Which layers of the reference: see `LayerPlan.from_layers`."""


def parse_layers(layers: Layers, depth: int) -> list[int]:
    """Return the layers that the user asked for, in the order asked for; see `LayerPlan.from_layers`.

    Raises:
        PlanError: the text cannot be read, there is no layer, a layer is not one of the model's `depth`, or the
            recommendation is for another depth.
        OutputError: the analysis in the folder holds no recommendation.
    """
    if (kept := recommended_layers(layers)) is not None:
        if kept.depth != depth:
            raise PlanError(
                f"the recommendation is for a model of {kept.depth} layers, this model has {describe_depth(depth)}: "
                "analyse this model"
            )
        return list(kept.keep)
    if (count := count_of(layers)) is not None:
        return list(range(layer_count(count, depth)))
    if isinstance(layers, Iterable) and not isinstance(layers, str):
        picked = [whole_number(layer) for layer in layers]
    else:
        picked = _parse_list(str(layers).strip(), depth)
    if not picked:
        raise PlanError(f"{layers!r} holds no layers: {_EXPECTED}, for a model with {describe_depth(depth)}")
    for layer in picked:
        if layer < 0:
            raise PlanError(f"layer {layer} is negative: the model has {describe_depth(depth)}")
    if max(picked) >= depth:
        raise PlanError(f"asked for layer {max(picked)}, the model has {describe_depth(depth)}")
    return picked


def count_of(layers: Any) -> int | None:
    """Return how many layers are meant where `layers` is a count, as a number or as text; None where it names layers.

    Raises:
        PlanError: it is neither, but a float, say.
    """
    if isinstance(layers, str):
        return int(layers) if re.fullmatch(r"\s*[+-]?\d+\s*", layers) else None
    if isinstance(layers, Path | Iterable) or hasattr(layers, "keep"):
        return None
    return whole_number(layers)


def recommended_layers(layers: Any) -> Kept | None:
    """Return the recommendation that `layers` is, or that the analysis folder it names holds; None for anything else.

    A text of numbers is a count, a range or a list even where a folder has that name.

    Raises:
        OutputError: the analysis in the folder holds no recommendation.
    """
    if hasattr(layers, "keep") and hasattr(layers, "depth"):
        return layers
    if not isinstance(layers, str | Path) or re.fullmatch(r"[\d\s,:+-]*", str(layers)):
        return None
    folder = Path(layers).expanduser()
    there = os.path.isfile(folder / SPECTRA)  # noqa: PTH113 - Path.is_file raises for text that is too long for a path
    return load_recommendation(folder) if there else None


def _parse_list(text: str, depth: int) -> list[int]:
    """Parse `a,b,...` whose items are layers or Python ranges `start:end[:step]`."""
    picked: list[int] = []
    for item in text.removesuffix(",").split(","):
        found = re.fullmatch(r"(-?\d+)|(\d*):(\d*)(?::0*([1-9]\d*))?", item.strip())
        if not found:
            raise PlanError(f"cannot read layers {text!r}: {_EXPECTED}{_inclusive_hint(item)}")
        start, end = int(found[1] or found[2] or 0), int(found[3] or depth)
        if found[1]:
            picked.append(start)
        elif start >= end:
            raise PlanError(f"{text!r} holds no layers: the start must be less than the end, which is excluded")
        elif end > depth:
            raise PlanError(f"asked for layers {start} to {end - 1} ({text!r}), the model has {describe_depth(depth)}")
        else:
            picked.extend(range(start, end, int(found[4] or 1)))
    return picked


def _inclusive_hint(item: str) -> str:
    found = re.fullmatch(r"\s*(\d+)\s*(?:-|\.\.)\s*(\d+)\s*", item)
    return f"; did you mean '{found[1]}:{int(found[2]) + 1}'?" if found else ""


def whole_number(value: Any) -> int:
    """Return `value` as an int; a float, a bool or text is a `PlanError`."""
    if isinstance(value, bool):
        raise PlanError(f"{value!r} is not a layer: expected a whole number")
    try:
        return operator.index(value)
    except TypeError as error:
        raise PlanError(f"{value!r} is not a layer: expected a whole number") from error


def positive_count(count: Any) -> int:
    """Return `count` as an int of at least 1, or raise `PlanError`."""
    count = whole_number(count)
    if count < 1:
        raise PlanError(f"asked for {count} layers: expected 1 or more")
    return count


def layer_count(count: Any, depth: int) -> int:
    """Return `count` as an int from 1 to `depth`, or raise `PlanError`."""
    if positive_count(count) > depth:
        raise PlanError(f"asked for {count} layers, the model has {describe_depth(depth)}")
    return int(count)


def describe_depth(depth: int) -> str:
    """Return how many layers there are and how they are numbered: `16 (0-15)`."""
    return f"{depth} (0-{depth - 1})" if depth > 1 else "1 (layer 0)"
