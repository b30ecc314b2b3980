"""Rows of what lies beside the ranks: whole blocks, gradients, and collapse while training."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from inheritune.records.analysis import Mask
from inheritune.report.read.analyses import Analysis
from inheritune.report.read.logs import WatchedStep
from inheritune.report.read.models import Model
from inheritune.report.read.runs import Run
from inheritune.report.rows.series import Row, at, head_classes, offsets

_DWARFED = 3
"""A value this many times the next one leaves less than a third of a linear axis to all others."""
_APART = 1.5
"""Epsilons whose extremes differ by a smaller factor are no axis to compare heads along."""

ScaleType = Literal["linear", "log", "symlog"]


def block_rows(model: Model) -> list[Row]:
    """Return Block Influence, MLP rank and mass of each block, with MaxRank under each mask where it has attention.

    `mlp_rank_low` and `mlp_rank_high` are one standard error below and above, None where the error is not known.
    """
    if model.analysis is None:
        return []
    analysis = model.analysis
    ranks = {mask: {index: part.max_rank for index, part in analysis.under(mask)} for mask in analysis.masks}
    rows = []
    for block in analysis.record.blocks or ():
        row: Row = {"model": model.label, "layer": block.index, "influence": block.influence}
        row |= {"mlp_rank": block.mlp_rank, "mlp_rank_error": block.mlp_rank_error, "mlp_mass": block.mlp_mass}
        low = high = None
        if block.mlp_rank is not None and block.mlp_rank_error is not None:
            low, high = block.mlp_rank - block.mlp_rank_error, block.mlp_rank + block.mlp_rank_error
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


def agreement_rows(model: Model) -> list[Row]:
    """Return a row for each mask and layer that has both a MaxRank and a Block Influence."""
    if model.analysis is None:
        return []
    return [
        {"mask": mask, "layer": row["layer"], "max_rank": row[mask], "influence": row["influence"]}
        for mask in model.analysis.masks
        for row in block_rows(model)
        if row[mask] is not None and row["influence"] is not None
    ]


@dataclass(frozen=True)
class Agreement:
    """How far two orders of the layers agree.

    Attributes:
        mask: of the MaxRank.
        correlation: Spearman's rank correlation of MaxRank and Block Influence, -1 to 1; None where one of them is the
            same for all layers, so that it has no order.
        p_value: two-sided, of no correlation.
        layers: how many were compared.
    """

    mask: str
    correlation: float | None
    p_value: float | None
    layers: int


def agreements(model: Model) -> list[Agreement]:
    """Return the agreement of MaxRank and Block Influence under each mask; nothing for fewer than three layers."""
    pairs: dict[str, list[tuple[float, float]]] = {}
    for row in agreement_rows(model):
        pairs.setdefault(row["mask"], []).append((row["max_rank"], row["influence"]))
    return [Agreement(mask, *_spearman(each), len(each)) for mask, each in pairs.items() if len(each) > 2]


def _spearman(pairs: list[tuple[float, float]]) -> tuple[float | None, float | None]:
    from scipy.stats import spearmanr

    ranks, influences = zip(*pairs, strict=True)
    if len(set(ranks)) < 2 or len(set(influences)) < 2:
        return None, None
    done = spearmanr(ranks, influences)
    return float(done.statistic), float(done.pvalue)


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
    least: dict[int, Row] = {}
    for row in rows:
        if row["span"] not in least or row["distance"] < least[row["span"]]["distance"]:
            least[row["span"]] = row
    return [row | {"best": least[row["span"]] is row} for row in rows]


def gradient_rows(analysis: Analysis, weight: Literal["query", "key"]) -> list[Row]:
    """Return each head's gradient norm for one weight, its bound and its causal sink epsilon.

    `class` is `not classed` unless both masks were analysed. `gradient`, `bound` and `epsilon` are None where they are
    unknown or zero, which a logarithmic axis cannot show.
    """
    rows: list[Row] = []
    for layer in analysis.record.layers:
        probe = layer.gradients
        if probe is None:
            continue
        norms, bounds = (probe.query, probe.query_bound) if weight == "query" else (probe.key, probe.key_bound)
        epsilons, classes = layer.causal.sink_epsilon if layer.causal else None, head_classes(layer)
        for head, norm in enumerate(norms):
            row = {"layer": layer.index, "head": head, "gradient": _positive(norm)}
            row |= {"bound": _positive(at(bounds, head)), "epsilon": _positive(at(epsilons, head))}
            rows.append(row | {"class": at(classes, head) or "not classed"})
    return rows


def _positive(value: float | None) -> float | None:
    return value if value is not None and value > 0 else None


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
        watched = [(line, values) for line in lines if (values := _watched(line, quantity, mask)) is not None]
        edges = _edges([line.tokens for line, _ in watched], each.tokens)
        for (line, values), (start, end) in zip(watched, edges, strict=True):
            place = {"round": each.name, "step": line.step, "tokens": offset + line.tokens}
            place |= {"start": offset + start, "end": offset + end}
            pairs = zip(line.layers, values, strict=False)
            rows += [place | {"layer": layer, "value": value} for layer, value in pairs if value is not None]
    return rows


def _watched(line: WatchedStep, quantity: str, mask: Mask | None) -> tuple[float | None, ...] | None:
    """Return a quantity of each layer at a watched step, None where it was not recorded."""
    part = line.gradients if mask is None else line.causal if mask == "causal" else line.full
    return None if part is None else part[quantity]


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
