"""Which layers a user asks for: a count, a range, a list, in Python or as text, checked against the model."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable
from typing import Any

from inheritune.errors import PlanError

_EXPECTED = "expected a count (12), a range with its end excluded (0:12) or a list (0,2,4)"


def parse_layers(layers: int | str | Iterable[int], depth: int) -> list[int]:
    """Return the layers that the user asked for, in the order asked for; see `LayerPlan.from_layers`.

    Raises:
        PlanError: the text cannot be read, there is no layer, or a layer is not one of the model's `depth`.
    """
    if isinstance(layers, str):
        text = layers.strip()
        if re.fullmatch(r"[+-]?\d+", text):
            return list(range(layer_count(int(text), depth)))
        picked = _parse_list(text, depth)
    elif isinstance(layers, Iterable):
        picked = [whole_number(layer) for layer in layers]
    else:
        return list(range(layer_count(layers, depth)))
    if not picked:
        raise PlanError(f"{layers!r} holds no layers: {_EXPECTED}, for a model with {describe_depth(depth)}")
    for layer in picked:
        if layer < 0:
            raise PlanError(f"layer {layer} is negative: the model has {describe_depth(depth)}")
    if max(picked) >= depth:
        raise PlanError(f"asked for layer {max(picked)}, the model has {describe_depth(depth)}")
    return picked


def _parse_list(text: str, depth: int) -> list[int]:
    """Parse `a,b,...` whose items are layers or Python ranges `start:end[:step]`."""
    picked: list[int] = []
    for item in text.removesuffix(",").split(","):
        found = re.fullmatch(r"(-?\d+)|(-?\d*):(-?\d*)(?::(-?\d+))?", item.strip())
        if not found:
            raise PlanError(f"cannot read layers {text!r}: {_EXPECTED}{_inclusive_hint(item)}")
        single, start, end, step = found.groups()
        if single:
            picked.append(int(single))
        else:
            picked.extend(_parse_range(text, int(start or 0), int(end or depth), int(step or 1), depth))
    return picked


def _parse_range(text: str, start: int, end: int, step: int, depth: int) -> range:
    if step <= 0:
        raise PlanError(f"cannot read layers {text!r}: the step is {step}, expected 1 or more")
    if start < 0 or end < 0:
        raise PlanError(f"layers {text!r} have a negative end: expected 0 or more")
    if start >= end:
        raise PlanError(f"{text!r} holds no layers: the start must be less than the end, which is excluded")
    if end > depth:
        raise PlanError(f"asked for layers {start} to {end - 1} ({text!r}), the model has {describe_depth(depth)}")
    return range(start, end, step)


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
