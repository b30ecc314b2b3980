"""What the charts draw, as plain rows: every number is in a record or is a mean of numbers that are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from inheritune.report.read.load import Analysis, Model, Run, finite
from inheritune.spectra.result import COLLAPSED_RANK

CURVE_POINTS = 300
"""About how many points of training loss are drawn for a run."""

Row = dict[str, Any]


def offsets(run: Run) -> list[int]:
    """Return, for each round, the tokens the run had been trained on when the round began."""
    done, starts = 0, []
    for turn in run.rounds:
        starts.append(done)
        done += int(turn["tokens"])
    return starts


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
    for turn, lines, start in zip(run.rounds, run.metrics, offsets(run), strict=True):
        points = [("training", tokens, loss) for tokens, loss in _binned(lines, bin_size(run))]
        points += [("check", int(x["tokens"]), x["valid_loss"]) for x in lines if finite(x.get("valid_loss"))]
        points += [("validation", tokens, loss) for tokens, loss in _evaluations(turn)]
        rows += [
            {"model": run.label, "round": turn["name"], "kind": kind, "tokens": start + tokens, "loss": loss}
            for kind, tokens, loss in points
        ]
    return rows


def _binned(lines: Sequence[dict[str, Any]], size: int) -> Iterator[tuple[int, float]]:
    for first in range(0, len(lines), size):
        part = lines[first : first + size]
        losses = [line["loss"] for line in part if finite(line.get("loss"))]
        if losses:
            yield int(part[-1]["tokens"]), sum(losses) / len(losses)


def _evaluations(turn: dict[str, Any]) -> Iterator[tuple[int, float]]:
    """Yield tokens within the round and loss of the evaluations before and after it."""
    for key, tokens in (("start_evaluation", 0), ("evaluation", int(turn["tokens"]))):
        if turn.get(key) is not None:
            yield tokens, turn[key]["loss"]


def round_rows(run: Run) -> list[Row]:
    """Return where the rounds of a run begin; nothing for a run of one round, which has no growth to mark."""
    if len(run.rounds) < 2:
        return []
    return [
        {
            "model": run.label,
            "round": turn["name"],
            "label": f"{turn['layers']} layer{'' if turn['layers'] == 1 else 's'}",
            "tokens": start,
        }
        for turn, start in zip(run.rounds, offsets(run), strict=True)
    ]


def reference_rows(models: Sequence[Model]) -> list[Row]:
    """Return the validation loss of each reference that was evaluated."""
    return [
        {"model": model.label, "loss": model.record["evaluation"]["loss"]}
        for model in models
        if model.run is None and model.record.get("evaluation") is not None
    ]


def loss_range(rows: Sequence[Row], references: Sequence[Row]) -> tuple[float, float]:
    """Return the losses the curves are drawn between.

    The first steps from a random start would flatten all the rest, so the range is that of the points after the first
    tenth of the tokens and of the references, and of what lies within half as much again above it.
    """
    last = max((row["tokens"] for row in rows), default=0)
    later = [row["loss"] for row in rows if row["tokens"] >= 0.1 * last] + [row["loss"] for row in references]
    near = [row["loss"] for row in rows if later and row["loss"] <= max(later) + 0.5 * (max(later) - min(later))]
    low, high = min(later + near), max(later + near)
    pad = 0.05 * (high - low) or 0.1
    return low - pad, high + pad


def masks(analysis: Analysis) -> list[str]:
    """Return the masks an analysis was made with, `causal` first."""
    return sorted(analysis.spectra["masks"])


def layer_rows(model: Model, mask: str) -> list[Row]:
    """Return MaxRank, AvgMass and laziness of each layer of an analysed model under one mask, with the heads' spread.

    `depth` is the place among the model's layers, 0 for the first and 1 for the last. `rank_low`, `rank_q1`,
    `rank_median`, `rank_q3`, `rank_high` are over the heads (quartiles interpolated linearly), and so for `mass`.
    `top_head` is the head of MaxRank (the first of several) and `rank_error` the standard error of its Rank, where the
    record has it. A model that was not analysed under this mask has no rows.
    """
    if model.analysis is None or mask not in model.analysis.spectra["masks"]:
        return []
    last = depth_of(model.analysis) - 1
    return [
        {
            "model": model.label,
            "layer": layer["index"],
            "depth": layer["index"] / max(last, 1),
            "max_rank": layer[mask]["max_rank"],
            "avg_mass": layer[mask]["avg_mass"],
            "lazy": layer[mask]["lazy"],
            **_top_head(layer[mask]),
            **_spread("rank", layer[mask]["rank"]),
            **_spread("mass", layer[mask]["mass"]),
        }
        for layer in model.analysis.spectra["layers"]
    ]


def depth_of(analysis: Analysis) -> int:
    """Return the number of layers of the analysed model; of an older record, up to the last that was analysed."""
    known = analysis.spectra.get("depth")
    return int(known) if known else 1 + max(layer["index"] for layer in analysis.spectra["layers"])


def _top_head(part: dict[str, Any]) -> Row:
    head = max(range(len(part["rank"])), key=part["rank"].__getitem__)
    error = at(part.get("rank_error"), head)
    return {"heads": len(part["rank"]), "top_head": head} | ({} if error is None else {"rank_error": error})


def at(values: Sequence[Any] | None, place: int) -> Any:
    """Return a value of an optional list of a record, None where the record lacks it."""
    return None if values is None or place >= len(values) else values[place]


def _spread(name: str, values: Sequence[float]) -> Row:
    points = np.quantile(values, [0, 0.25, 0.5, 0.75, 1]).tolist()
    return {f"{name}_{key}": point for key, point in zip(("low", "q1", "median", "q3", "high"), points, strict=True)}


def tau_rows(analysis: Analysis, mask: str) -> list[Row]:
    """Return MaxRank of each layer for each tau (Fig. 10), nothing when the ranks are known for fewer than two."""
    rows = [
        {"tau": f"{float(tau):g}", "layer": layer["index"], "max_rank": max(ranks)}
        for layer in analysis.spectra["layers"]
        for tau, ranks in sorted((layer[mask].get("ranks") or {}).items(), key=lambda item: float(item[0]))
    ]
    return rows if len({row["tau"] for row in rows}) > 1 else []


_PER_HEAD = ("mass", "entropy", "stable_rank", "sink_column", "sink_epsilon")


def head_rows(analysis: Analysis, mask: str) -> list[Row]:
    """Return the Rank of each head under one mask, and whether the head is collapsed (Rank below `COLLAPSED_RANK`).

    Beside them what the record has of `error` (the standard error of Rank), `mass`, `entropy`, `stable_rank`,
    `sink_column`, `sink_epsilon` and, where both masks were analysed, `class`.
    """
    rows: list[Row] = []
    for layer in analysis.spectra["layers"]:
        part, classes = layer[mask], head_classes(analysis, layer)
        for head, rank in enumerate(part["rank"]):
            row = {"layer": layer["index"], "head": head, "rank": rank, "collapsed": rank < COLLAPSED_RANK}
            more = {"error": at(part.get("rank_error"), head), "class": at(classes, head)}
            more |= {key: at(part.get(key), head) for key in _PER_HEAD}
            rows.append(row | {key: value for key, value in more.items() if value is not None})
    return rows


def head_classes(analysis: Analysis, layer: dict[str, Any]) -> list[str] | None:
    """Return the class of each head of a layer: `sink`, `uniform` or `potent`; None unless both masks were analysed."""
    if len(analysis.spectra["masks"]) < 2:
        return None
    if layer.get("classes"):
        return list(layer["classes"])
    pairs = zip(layer["causal"]["rank"], layer["full"]["rank"], strict=True)
    return [
        "sink" if causal < COLLAPSED_RANK else "uniform" if full < COLLAPSED_RANK else "potent"
        for causal, full in pairs
    ]


def class_rows(analysis: Analysis) -> list[Row]:
    """Return the class of each head with its Rank under both masks; nothing unless both were analysed."""
    return [
        {
            "layer": layer["index"],
            "head": head,
            "class": name,
            "causal": layer["causal"]["rank"][head],
            "full": layer["full"]["rank"][head],
        }
        for layer in analysis.spectra["layers"]
        for head, name in enumerate(head_classes(analysis, layer) or [])
    ]


def highest_rank(models: Sequence[Model]) -> float:
    """Return the highest Rank of any head on the page, so that all heat maps share one colour scale."""
    return max(
        (
            row["rank"]
            for model in models
            if model.analysis is not None
            for mask in masks(model.analysis)
            for row in head_rows(model.analysis, mask)
        ),
        default=1.0,
    )
