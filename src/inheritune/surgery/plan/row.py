"""The rows of a `LayerPlan`, which say where each layer of the new model comes from, and the table they print as."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from inheritune.errors import PlanError, unknown_name
from inheritune.layers import plural, ranges, runs
from inheritune.surgery.plan.selection import PARTS, parse_parts, whole_number

Model: TypeAlias = Literal["reference", "target"]
MODELS: tuple[Model, ...] = ("reference", "target")
"""The models that a plan takes layers from."""

Moved: TypeAlias = Literal["keep", "as-is"]
MOVED: tuple[Moved, ...] = ("keep", "as-is")
"""What can be done about a layer that gets another number, in a family that computes by it."""


@dataclass(frozen=True)
class LayerRow:
    """Where one target layer comes from.

    Attributes:
        model: `"reference"` (the trained reference), `"target"` (the model that is being grown or stacked) or None
            (random initialisation).
        source: layer of that model, from 0; None for random initialisation.
        parts: what is copied, some of `PARTS`; the rest is random. Empty for random initialisation.
        zero_output: whether the projections that write to the residual stream start at zero, so that the block passes
            its input on unchanged until it is trained (growth that preserves the function).
        revived: query heads, 0-based, whose query and key weights start afresh at their random initialisation.
        moved: what is done where the family computes by a layer's number and this one gets another: `"keep"` changes
            its weights so that it computes what it did, `"as-is"` leaves them, as the paper's stacking does.
    """

    model: Model | None
    source: int | None
    parts: tuple[str, ...] = PARTS
    zero_output: bool = False
    revived: tuple[int, ...] = ()
    moved: Moved = "keep"

    def __post_init__(self) -> None:
        object.__setattr__(self, "revived", tuple(sorted({whole_number(head) for head in self.revived})))
        if self.revived and (self.revived[0] < 0 or "attention" not in self.parts):
            raise PlanError(f"cannot revive heads {list(self.revived)} of a layer that takes {list(self.parts)}")
        if self.moved not in MOVED:
            raise PlanError(unknown_name("way to move a layer", str(self.moved), MOVED))
        if self.model is None:
            if self.source is not None or self.parts:
                raise PlanError(f"a random layer takes nothing: got source {self.source} and parts {list(self.parts)}")
            return
        if self.model not in MODELS:
            raise PlanError(unknown_name("model in a plan", str(self.model), MODELS))
        if self.source is None or self.source < 0:
            raise PlanError(f"source layer {self.source}: expected 0 or more")
        object.__setattr__(self, "parts", parse_parts(self.parts))

    @property
    def random_parts(self) -> tuple[str, ...]:
        """The parts that keep the random initialisation."""
        return tuple(part for part in PARTS if part not in self.parts)

    @property
    def changes(self) -> str:
        """What is done to the layer after its parts were copied, in words; empty where nothing is."""
        said = ["output zero"] if self.zero_output else []
        if self.revived:
            heads = ("head " if len(self.revived) == 1 else "heads ") + ranges(self.revived)
            said.append(f"queries, keys of {heads} random")
        return "; ".join(said)


RANDOM = LayerRow(None, None, ())

Numbered = tuple[int, LayerRow]
"""A row with the number of its layer in the new model."""


def plan_table(rows: Sequence[LayerRow]) -> str:
    """Return rows as text: target layers <- source layers, what is copied, what is random; ends included."""
    header = ("target", "", "source", "copied", "random", "then" if any(row.changes for row in rows) else "")
    lines = [header, *map(_line, runs(enumerate(rows), _follows))]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    title = f"{plural(len(rows), 'layer')}, numbered from 0, both ends of a range included"
    return "\n".join([title, *(line.rstrip() for line in text), *order_notes(rows)])


def order_notes(rows: Sequence[LayerRow]) -> list[str]:
    """Return a line for each model whose layers a plan repeats or takes out of their order; none where it does not."""
    notes = []
    for model in MODELS:
        sources = [row.source for row in rows if row.model == model and row.source is not None]
        said = []
        if repeated := sorted({layer for layer in sources if sources.count(layer) > 1}):
            said.append(f"layers {ranges(repeated)} more than once")
        if steps := [pair for pair in itertools.pairwise(sources) if pair[1] < pair[0]]:
            said.append(f"out of order (layer {steps[0][1]} behind layer {steps[0][0]})")
        if said:
            notes.append(f"note: of the {model}, {' and '.join(said)}")
    return notes


def _follows(one: Numbered, two: Numbered) -> bool:
    (_, before), (_, after) = one, two
    if (before.model, before.parts, before.changes) != (after.model, after.parts, after.changes):
        return False
    return before.source is None or after.source == before.source + 1


def _line(run: Sequence[Numbered]) -> tuple[str, str, str, str, str, str]:
    row = run[0][1]
    sources = ranges(each.source for _, each in run if each.source is not None)
    source = "-" if row.model is None else f"{row.model} {sources}"
    target = ranges(number for number, _ in run)
    return target, "<-", source, ", ".join(row.parts) or "-", ", ".join(row.random_parts) or "-", row.changes
