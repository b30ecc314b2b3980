"""A plan as text: a line for each run of layers that one line can say, and what is unusual in their order."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from inheritune.layers import ranges, runs
from inheritune.surgery.plan.row import MODELS, LayerRow

Numbered = tuple[int, LayerRow]
"""A row with the number of its layer in the new model."""


def plan_table(rows: Sequence[LayerRow]) -> str:
    """Return rows as text: target layers <- source layers, what is copied, what is random; ends included."""
    header = ("target", "", "source", "copied", "random", "then" if any(row.changes for row in rows) else "")
    lines = [header, *map(_line, runs(enumerate(rows), _follows))]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    count = len(rows)
    title = f"{count} layer{'s' if count > 1 else ''}, numbered from 0, both ends of a range included"
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
