"""What the charts draw, as plain rows: every number is in a record or is a mean of numbers that are."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from inheritune.layers import plural
from inheritune.records.analysis import Mask
from inheritune.records.runs import ReferenceRecord
from inheritune.report.read.folders import Analysis, LoggedStep, Run
from inheritune.report.read.models import Model
from inheritune.spectra.result import COLLAPSED_RANK

Value = TypeVar("Value")

CURVE_POINTS = 300
"""About how many points of training loss are drawn for a run."""

Row = dict[str, Any]
"""What a chart draws at one place: named numbers and texts, as Vega takes them."""


def offsets(run: Run) -> list[int]:
    """Return, for each round, the tokens the run had been trained on when the round began."""
    return [0, *itertools.accumulate(each.tokens for each in run.record.rounds)][:-1]


def bin_size(run: Run) -> int:
    """Return how many logged steps one drawn point of training loss is the mean of."""
    return max(1, math.ceil(sum(len(lines) for lines in run.metrics) / CURVE_POINTS))


def curve_rows(run: Run) -> list[Row]:
    """Return a run's losses over the tokens of all its rounds together.

    Each row has `model`, `round` (its name), `kind`, `tokens` and `loss` (nats per token). The kinds: `training`, means
    of `bin_size(run)` logged steps, placed at the last one's tokens; `check`, the validation loss that was logged while
    training, which may be of fewer windows; `validation`, the evaluations on all windows before and after a round. A
    check on fewer windows is easier or harder than the whole, so it is never joined to an evaluation.
    """
    rows: list[Row] = []
    for each, lines, start in zip(run.record.rounds, run.metrics, offsets(run), strict=True):
        points = [("training", tokens, loss) for tokens, loss in _binned(lines, bin_size(run))]
        points += [("check", line.tokens, line.valid_loss) for line in lines if line.valid_loss is not None]
        if each.start_evaluation is not None:
            points.append(("validation", 0, each.start_evaluation.loss))
        points.append(("validation", each.tokens, each.evaluation.loss))
        rows += [
            {"model": run.label, "round": each.name, "kind": kind, "tokens": start + tokens, "loss": loss}
            for kind, tokens, loss in points
        ]
    return rows


def _binned(lines: Sequence[LoggedStep], size: int) -> Iterator[tuple[int, float]]:
    for first in range(0, len(lines), size):
        part = lines[first : first + size]
        losses = [line.loss for line in part if line.loss is not None]
        if losses:
            yield part[-1].tokens, sum(losses) / len(losses)


def round_rows(run: Run) -> list[Row]:
    """Return where the rounds of a run begin; nothing for a run of one round, which has no growth to mark."""
    rounds = run.record.rounds if len(run.record.rounds) > 1 else ()
    return [
        {"model": run.label, "round": each.name, "label": plural(each.layers, "layer"), "tokens": start}
        for each, start in zip(rounds, offsets(run), strict=False)
    ]


def reference_rows(models: Sequence[Model]) -> list[Row]:
    """Return the validation loss of each reference."""
    return [
        {"model": model.label, "loss": model.record.evaluation.loss}
        for model in models
        if isinstance(model.record, ReferenceRecord)
    ]


def loss_range(rows: Sequence[Row], references: Sequence[Row]) -> tuple[float, float]:
    """Return the losses the curves are drawn between.

    The first steps from a random start would flatten all the rest, so the range is that of the points after the first
    tenth of the tokens and of the references, and of what lies within half as much again above it.
    """
    last = max((row["tokens"] for row in rows), default=0)
    later = [row["loss"] for row in rows if row["tokens"] >= 0.1 * last] + [row["loss"] for row in references]
    reach = max(later) + 0.5 * (max(later) - min(later))
    near = [row["loss"] for row in rows if row["loss"] <= reach]
    low, high = min(later + near), max(later + near)
    pad = 0.05 * (high - low) or 0.1
    return low - pad, high + pad


def layer_rows(label: str, analysis: Analysis, mask: Mask) -> list[Row]:
    """Return MaxRank, AvgMass and laziness of each layer of a model under one mask, with the heads' spread.

    `depth` is the place among the model's layers, 0 for the first and 1 for the last. `rank_low`, `rank_q1`,
    `rank_median`, `rank_q3`, `rank_high` are over the heads (quartiles interpolated linearly), and so for `mass`.
    `top_head` is the head of MaxRank (the first of several) and `rank_error` the standard error of its Rank, where the
    record has it. A model that was not analysed under this mask has no rows.
    """
    rows: list[Row] = []
    for index, part in analysis.under(mask):
        head = part.rank.index(max(part.rank))
        row: Row = {"model": label, "layer": index, "depth": index / max(analysis.depth - 1, 1)}
        row |= {"max_rank": part.max_rank, "avg_mass": part.avg_mass, "lazy": part.lazy}
        row |= {"heads": len(part.rank), "top_head": head}
        error = at(part.rank_error, head)
        row |= {} if error is None else {"rank_error": error}
        rows.append(row | _spread("rank", part.rank) | _spread("mass", part.mass))
    return rows


def at(values: Sequence[Value] | None, place: int) -> Value | None:
    """Return a value of an optional list of a record, None where the record lacks it."""
    return None if values is None else values[place]


def _spread(name: str, values: Sequence[float]) -> Row:
    points = np.quantile(values, [0, 0.25, 0.5, 0.75, 1]).tolist()
    return {f"{name}_{key}": point for key, point in zip(("low", "q1", "median", "q3", "high"), points, strict=True)}


def tau_rows(analysis: Analysis, mask: Mask) -> list[Row]:
    """Return MaxRank of each layer for each tau (Fig. 10), nothing when the ranks are known for fewer than two."""
    rows = [
        {"tau": f"{float(tau):g}", "layer": index, "max_rank": max(ranks)}
        for index, part in analysis.under(mask)
        for tau, ranks in sorted(part.ranks.items(), key=lambda item: float(item[0]))
    ]
    return rows if len({row["tau"] for row in rows}) > 1 else []


def head_rows(analysis: Analysis, mask: Mask) -> list[Row]:
    """Return the Rank of each head under one mask, and whether the head is collapsed (Rank below `COLLAPSED_RANK`).

    Beside them what the record has of `error` (the standard error of Rank), `mass`, `entropy`, `stable_rank`,
    `sink_column`, `sink_epsilon` and, where both masks were analysed, `class`.
    """
    classes = {layer.index: layer.classes for layer in analysis.record.layers}
    rows: list[Row] = []
    for index, part in analysis.under(mask):
        more: dict[str, Sequence[float | str | None] | None] = {"error": part.rank_error, "class": classes[index]}
        more |= {name: part[name] for name in ("mass", "entropy", "stable_rank", "sink_column", "sink_epsilon")}
        for head, rank in enumerate(part.rank):
            row = {"layer": index, "head": head, "rank": rank, "collapsed": rank < COLLAPSED_RANK}
            known = {key: at(values, head) for key, values in more.items()}
            rows.append(row | {key: value for key, value in known.items() if value is not None})
    return rows


def class_rows(analysis: Analysis) -> list[Row]:
    """Return the class of each head with its Rank under both masks; nothing unless both were analysed."""
    return [
        {"layer": layer.index, "head": head, "class": name, "rank_causal": causal, "rank_full": full}
        for layer in analysis.record.layers
        if layer.classes and layer.causal and layer.full
        for head, (name, causal, full) in enumerate(zip(layer.classes, layer.causal.rank, layer.full.rank, strict=True))
    ]


def class_counts(analysis: Analysis) -> dict[str, int]:
    """Return how many heads are of each class; nothing unless both masks were analysed."""
    names = [row["class"] for row in class_rows(analysis)]
    return {name: names.count(name) for name in ("sink", "uniform", "potent")} if names else {}


def highest_rank(analyses: Iterable[Analysis]) -> float:
    """Return the highest Rank of any head on the page, so that all heat maps share one colour scale."""
    parts = (part for analysis in analyses for mask in analysis.masks for _, part in analysis.under(mask))
    return max((max(part.rank) for part in parts), default=1.0)
