"""Which layers and which of their parts a user asks for, and which part of a block a weight belongs to.

Layers are a count, a range, a list, a recommendation or the analysis that holds one. The parts (paper, Table 3) follow
from the names of the direct children of a block, not from a table of families:

- norms: the block's own normalisation layers, whatever they normalise (`ln_1`, `input_layernorm`, OPT's
  `self_attn_layer_norm`, Falcon's `ln_attn`, Gemma 2's `post_feedforward_layernorm` ...);
- attention: everything inside the attention module. Norms of queries, keys or of the attention's own output
  (`self_attn.q_norm`, Phi's `q_layernorm`, BitNet's `attn_sub_norm`) belong to it: they set the scale of the logits
  the projections beside them were trained for, so copying one without the other copies neither;
- mlp: everything inside the feed-forward module, experts, routers and inner norms included.

A name that is none of these (a Mamba mixer, a convolution, a per-layer gate) is an error, never a guess.
"""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

from inheritune.errors import PlanError, unknown_name
from inheritune.records.analysis import Recommendation
from inheritune.spectra.advice import load_recommendation
from inheritune.spectra.folder import PRICES, SPECTRA

_EXPECTED = (
    "expected a count (12), a range with its end excluded (0:12) or a list (0,2,4), "
    f"or an analysis folder (with {SPECTRA})"
)

Layers: TypeAlias = int | str | Path | Recommendation | Iterable[int]
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
    if negative := [layer for layer in picked if layer < 0]:
        raise PlanError(f"layer {negative[0]} is negative: the model has {describe_depth(depth)}")
    if max(picked) >= depth:
        raise PlanError(f"asked for layer {max(picked)}, the model has {describe_depth(depth)}")
    return picked


def count_of(layers: Any) -> int | None:
    """Return how many layers are meant by a count, as a number or as text; None where `layers` names them itself.

    Raises:
        PlanError: it is neither, but a float, say.
    """
    if isinstance(layers, str):
        return int(layers) if re.fullmatch(r"\s*[+-]?\d+\s*", layers) else None
    return None if isinstance(layers, Path | Iterable) else whole_number(layers)


def recommended_layers(layers: Any) -> Recommendation | None:
    """Return the recommendation that `layers` is, or that the analysis folder it names holds; None for anything else.

    A text of numbers is a count, a range or a list even where a folder has that name.

    Raises:
        OutputError: the analysis in the folder holds no recommendation.
    """
    if isinstance(layers, Recommendation):
        return layers
    if not isinstance(layers, str | Path) or re.fullmatch(r"[\d\s,:+-]*", str(layers)):
        return None
    folder = Path(layers).expanduser()
    # Path.is_file raises for text that is too long for a path.
    there = any(os.path.isfile(folder / name) for name in (SPECTRA, PRICES))  # noqa: PTH113
    return load_recommendation(folder) if there else None


def _parse_list(text: str, depth: int) -> list[int]:
    """Parse `a,b,...` whose items are layers or Python ranges `start:end[:step]`."""
    picked: list[int] = []
    for item in text.removesuffix(",").split(","):
        found = re.fullmatch(r"(-?\d+)|(\d*):(\d*)(?::0*([1-9]\d*))?", item.strip())
        if not found:
            both = re.fullmatch(r"\s*(\d+)\s*(?:-|\.\.)\s*(\d+)\s*", item)
            hint = f"; did you mean '{both[1]}:{int(both[2]) + 1}'?" if both else ""
            raise PlanError(f"cannot read layers {text!r}: {_EXPECTED}{hint}")
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


def whole_number(value: Any) -> int:
    """Return `value` as an int; a float, a bool or text is a `PlanError`."""
    try:
        if isinstance(value, bool):
            raise TypeError("a truth value")
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


PARTS = ("attention", "mlp", "norms")
"""The parts of a block, in the order in which they are printed and recorded."""

_NORM = re.compile(r"(^|_)(ln|norm|layer_?norm|rms_?norm)(_|\d|$)|layernorm\d*$", re.IGNORECASE)
_ATTENTION = re.compile(r"(^|_)(attn|att|attention)$")
_MLP = re.compile(r"(^|_)(mlp|ffn|ff|feed_?forward|moe|fc\d|experts|router)$")


def parse_parts(parts: str | Iterable[str]) -> tuple[str, ...]:
    """Return the parts named: `"all"`, names with commas (`"attention,norms"`) or an iterable; in the order of `PARTS`.

    Raises:
        PlanError: a name is unknown, or there is none.
    """
    if not isinstance(parts, Iterable):
        raise PlanError(f"parts {parts!r}: expected 'all' or some of {', '.join(PARTS)}")
    names = [str(name).strip().lower() for name in (parts.split(",") if isinstance(parts, str) else parts)]
    if not any(names):
        raise PlanError(f"no parts given: expected 'all' or some of {', '.join(PARTS)}")
    for name in names:
        if name not in ("all", *PARTS):
            raise PlanError(unknown_name("part", name, ("all", *PARTS)))
    return PARTS if "all" in names else tuple(part for part in PARTS if part in names)


def part_of(key: str) -> str:
    """Return the part that the weight `key` of a block (`attn.c_attn.weight`, say) belongs to.

    Raises:
        PlanError: the name says neither attention, MLP nor norm.
    """
    *modules, _ = key.split(".")
    for depth, name in enumerate(modules):
        # A norm is a module that holds the weight itself; DBRX's `norm_attn_norm` is a container, so look inside it.
        if _NORM.search(name):
            if depth == len(modules) - 1:
                return "norms"
            continue
        if _ATTENTION.search(name):
            return "attention"
        if _MLP.search(name):
            return "mlp"
        break
    raise PlanError(f"cannot tell which part the block's weight {key!r} belongs to: expected parts 'all'")
