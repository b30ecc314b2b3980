"""Rows of what lies beside the ranks: whole blocks, gradients, and collapse while training."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from inheritune.report.read.load import Analysis, Model, Run, finite
from inheritune.report.rows.series import Row, at, head_classes, masks, offsets

_BLOCK = ("influence", "mlp_rank", "mlp_rank_error", "mlp_mass")
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
    spectra = model.analysis.spectra
    ranks = {layer["index"]: layer for layer in spectra["layers"]}
    rows = []
    for block in spectra.get("blocks") or []:
        row: Row = {"model": model.label, "layer": block["index"]} | {key: block.get(key) for key in _BLOCK}
        rank, error = row["mlp_rank"], row["mlp_rank_error"]
        known = rank is not None and error is not None
        row |= {"mlp_rank_low": rank - error if known else None, "mlp_rank_high": rank + error if known else None}
        layer = ranks.get(block["index"])
        row |= {mask: layer[mask]["max_rank"] if layer else None for mask in spectra["masks"]}
        rows.append(row)
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
        for mask in masks(model.analysis)
        for row in block_rows(model)
        if finite(row[mask]) and finite(row["influence"])
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
    rows, found = agreement_rows(model), []
    for mask in dict.fromkeys(row["mask"] for row in rows):
        pairs = [(row["max_rank"], row["influence"]) for row in rows if row["mask"] == mask]
        if len(pairs) > 2:
            found.append(Agreement(mask, *_spearman(pairs), len(pairs)))
    return found


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
    rows = [
        {"start": start, "end": start + n - 1, "span": n, "distance": distance}
        for start, distances in enumerate(analysis.spectra.get("angular_distance") or [])
        for n, distance in enumerate(distances, start=1)
        if finite(distance)
    ]
    best = {n: min((row for row in rows if row["span"] == n), key=_distance) for n in {row["span"] for row in rows}}
    return [row | {"best": best[row["span"]] is row} for row in rows]


def _distance(row: Row) -> float:
    return float(row["distance"])


def gradient_rows(analysis: Analysis, weight: str) -> list[Row]:
    """Return each head's gradient norm for one weight (`query` or `key`), its bound and its causal sink epsilon.

    `class` is `not classed` unless both masks were analysed. `gradient`, `bound` and `epsilon` are None where they are
    unknown or zero, which a logarithmic axis cannot show.
    """
    rows: list[Row] = []
    for layer in analysis.spectra["layers"]:
        probe = layer.get("gradients") or {}
        epsilons, classes = (layer.get("causal") or {}).get("sink_epsilon"), head_classes(analysis, layer)
        for head, norm in enumerate(probe.get(weight) or []):
            row = {"layer": layer["index"], "head": head, "gradient": _positive(norm)}
            row |= {
                "bound": _positive(at(probe.get(f"{weight}_bound"), head)),
                "epsilon": _positive(at(epsilons, head)),
            }
            rows.append(row | {"class": at(classes, head) or "not classed"})
    return rows


def _positive(value: Any) -> float | None:
    return float(value) if finite(value) and value > 0 else None


def collapse_rows(run: Run, quantity: str, mask: str | None) -> list[Row]:
    """Return one watched quantity over training: a row for each watched step and layer.

    Args:
        run: the run.
        quantity: `max_rank` or `collapsed` under a mask, or `query` or `key` (gradient norms) without one.
        mask: `causal`, `full` or None.

    Returns:
        Rows with `round`, `step` (of the round), `tokens` (of all rounds), `start` and `end` (tokens, where the cell
        is drawn: half way to the watched steps before and after it in the same round), `layer` and `value`.
    """
    part = mask or "gradients"
    rows: list[Row] = []
    for turn, lines, offset in zip(run.rounds, run.collapse, offsets(run), strict=True):
        kept = [line for line in lines if (line.get(part) or {}).get(quantity) is not None]
        edges = _edges([int(line["tokens"]) for line in kept], int(turn["tokens"]))
        for line, (start, end) in zip(kept, edges, strict=True):
            place = {"round": turn["name"], "step": line["step"], "tokens": offset + int(line["tokens"])}
            place |= {"start": offset + start, "end": offset + end}
            values = zip(line["layers"], line[part][quantity], strict=False)
            rows += [place | {"layer": layer, "value": value} for layer, value in values if finite(value)]
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
