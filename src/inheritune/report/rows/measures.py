"""Rows of what lies beside the ranks: whole blocks, their prices, gradients, and collapse while training."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal

from inheritune.records.analysis import Mask
from inheritune.records.prices import OtherCut
from inheritune.report.read.folders import Analysis, Run
from inheritune.report.rows.series import Row, at, offsets
from inheritune.spectra.measure.blocks import rank_correlation

_DWARFED = 3
"""A value this many times the next one leaves less than a third of a linear axis to all others."""
_APART = 1.5
"""Epsilons whose extremes differ by a smaller factor are no axis to compare heads along."""

MEASURED = "cheapest found"
"""What the chart calls the cut of lowest loss."""

ScaleType = Literal["linear", "log", "symlog"]


def block_rows(label: str, analysis: Analysis) -> list[Row]:
    """Return Block Influence, MLP rank and mass of each block, with MaxRank under each mask where it has attention.

    `mlp_rank_low` and `mlp_rank_high` are one standard error below and above, None where the error is not known.
    """
    ranks = {mask: {index: part.max_rank for index, part in analysis.under(mask)} for mask in analysis.masks}
    rows = []
    for block in analysis.record.blocks or ():
        rank, error = block.mlp_rank, block.mlp_rank_error
        low, high = (None, None) if rank is None or error is None else (rank - error, rank + error)
        row: Row = {"model": label, "layer": block.index, "influence": block.influence}
        row |= {"mlp_rank": rank, "mlp_rank_error": error, "mlp_mass": block.mlp_mass}
        row |= {"mlp_rank_low": low, "mlp_rank_high": high}
        rows.append(row | {mask: each.get(block.index) for mask, each in ranks.items()})
    return rows


def influence_scale(values: Sequence[float]) -> ScaleType:
    """Return how to draw Block Influence: linear, or logarithmic where one layer would flatten the others.

    A block that only rescales has an influence of 0, or a rounding error below it, which a logarithm cannot show.
    """
    *others, highest = sorted(values)
    if not others or highest <= _DWARFED * others[-1]:
        return "linear"
    return "log" if others[0] > 0 else "symlog"


def gradient_axis(rows: Sequence[Row]) -> Literal["epsilon", "layer"]:
    """Return what to draw gradients over: epsilon, or the layer where the epsilons are unknown or nearly the same."""
    known = [row["epsilon"] for row in rows if row["epsilon"] is not None]
    return "epsilon" if known and max(known) > _APART * min(known) else "layer"


def agreement_rows(analysis: Analysis) -> list[Row]:
    """Return a row for each mask and layer that has both a MaxRank and a Block Influence."""
    return [
        {"mask": mask, "layer": row["layer"], "max_rank": row[mask], "influence": row["influence"]}
        for mask in analysis.masks
        for row in block_rows("", analysis)
        if row[mask] is not None and row["influence"] is not None
    ]


def agreements(analysis: Analysis) -> list[tuple[Mask, int, float | None, float | None]]:
    """Return how far MaxRank and Block Influence order the layers alike, under each mask; from three layers on.

    Returns:
        The mask, the number of layers, Spearman's rank correlation (-1 to 1) and its two-sided p value; None for both
        where MaxRank or Block Influence is the same for all layers, so that it has no order.
    """
    made: list[tuple[Mask, int, float | None, float | None]] = []
    for mask in analysis.masks:
        pairs = [(row["max_rank"], row["influence"]) for row in agreement_rows(analysis) if row["mask"] == mask]
        if len(pairs) < 3:
            continue
        ranks, influences = zip(*pairs, strict=True)
        correlation, p_value = rank_correlation(ranks, influences) or (None, None)
        made.append((mask, len(pairs), correlation, p_value))
    return made


def angular_rows(analysis: Analysis) -> list[Row]:
    """Return the angular distance of each span of layers, and for each length whether the span is the closest one.

    Row l of the record holds the distances from the input of block l to that of block l + n, n = 1, 2, ...: what
    cutting the n blocks from l on skips.
    """
    rows: list[Row] = [
        {"start": start, "end": start + n - 1, "span": n, "distance": distance}
        for start, distances in enumerate(analysis.record.angular_distance or ())
        for n, distance in enumerate(distances, start=1)
        if distance is not None
    ]
    # Of several as close, the first: the last that stays in the dict.
    closest = {row["span"]: row for row in sorted(rows, key=lambda row: (-row["distance"], -row["start"]))}
    return [row | {"best": row is closest[row["span"]]} for row in rows]


def gradient_rows(analysis: Analysis, weight: str) -> list[Row]:
    """Return each head's gradient norm for one weight (`query` or `key`), its bound and its causal sink epsilon.

    `class` is `not classed` unless both masks were analysed. `gradient`, `bound` and `epsilon` are None where they are
    unknown or zero, which a logarithmic axis cannot show.
    """
    rows: list[Row] = []
    for layer in analysis.record.layers:
        probe = layer.gradients
        if probe is None:
            continue
        epsilons, classes = layer.causal.sink_epsilon if layer.causal else None, layer.classes
        for head, norm in enumerate(probe[weight]):
            row = {"layer": layer.index, "head": head, "gradient": _positive(norm)}
            row |= {"bound": _positive(probe[f"{weight}_bound"][head]), "epsilon": _positive(at(epsilons, head))}
            rows.append(row | {"class": at(classes, head) or "not classed"})
    return rows


def _positive(value: float | None) -> float | None:
    return value if value is not None and value > 0 else None


def price_rows(analysis: Analysis) -> list[Row]:
    """Return the price of each layer with its interval, MaxRank under each mask, Block Influence; none unmeasured."""
    if analysis.prices is None:
        return []
    ranks = {mask: {index: part.max_rank for index, part in analysis.under(mask)} for mask in analysis.masks}
    influence = {block.index: block.influence for block in analysis.record.blocks or ()}
    rows: list[Row] = []
    for layer in analysis.prices.layers:
        if (cost := layer.cost) is not None:
            row: Row = {"layer": layer.index, "price": cost.difference, "low": cost.ci_low, "high": cost.ci_high}
            rows.append(row | {"influence": influence.get(layer.index)} | {m: ranks[m].get(layer.index) for m in ranks})
    return rows


def cut_rows(analysis: Analysis) -> list[Row]:
    """Return the loss of the cut to each depth before training: the cheapest found, and those of other rules."""
    if analysis.prices is None:
        return []
    rows: list[Row] = [{"rule": MEASURED, "depth": analysis.prices.depth, "loss": analysis.prices.loss, "cut": "none"}]
    for price in analysis.prices.cuts:
        found = {MEASURED: OtherCut(cut=price.cut, loss=price.cost.loss)} | price.others
        rows += [
            {"rule": rule, "depth": price.depth, "loss": other.loss, "cut": ", ".join(map(str, sorted(other.cut)))}
            for rule, other in found.items()
            if other.loss is not None
        ]
    return rows


def collapse_rows(run: Run, quantity: str, mask: Mask | None) -> list[Row]:
    """Return one watched quantity over training: a row for each watched step and layer.

    Args:
        run: the run.
        quantity: `max_rank` or `collapsed` under a mask, or `query` or `key` (gradient norms) without one.
        mask: `causal`, `full` or None.

    Returns:
        Rows with `round`, `step` (of the round), `tokens` (of all rounds), `start` and `end` (tokens, where the cell
        is drawn: half way to the watched steps before and after it in the same round), `layer` and `value`.
    """
    rows: list[Row] = []
    for each, lines, offset in zip(run.record.rounds, run.collapse, offsets(run), strict=True):
        watched = [(line, part[quantity]) for line in lines if (part := line[mask or "gradients"]) is not None]
        edges = _edges([line.tokens for line, _ in watched], each.tokens)
        for (line, values), (start, end) in zip(watched, edges, strict=True):
            place = {"round": each.name, "step": line.step, "tokens": offset + line.tokens}
            place |= {"start": offset + start, "end": offset + end}
            pairs = zip(line.layers, values, strict=False)
            rows += [place | {"layer": layer, "value": value} for layer, value in pairs if value is not None]
    return rows


def _edges(tokens: list[int], last: int) -> list[tuple[float, float]]:
    """Return where the cells of a round begin and end: half way between neighbours, and the round's own ends."""
    if not tokens:
        return []
    middles = [(a + b) / 2 for a, b in itertools.pairwise(tokens)]
    bounds = [0.0, *middles, float(max(last, tokens[-1]))]
    return list(itertools.pairwise(bounds))


def value_range(rows: list[Row], logarithmic: bool) -> tuple[float, float] | None:
    """Return the least and the greatest value of rows, widened where they are one; for a log scale of positive ones."""
    values = [row["value"] for row in rows if row["value"] > 0 or not logarithmic]
    if not values:
        return None
    low, high = min(values), max(values)
    if math.isclose(low, high):
        high = low * 2 if logarithmic else low + 1
    return low, high
