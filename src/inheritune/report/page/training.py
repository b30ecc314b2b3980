"""Charts of training: losses over tokens, and collapse while a model is trained."""

from __future__ import annotations

from collections.abc import Sequence

from inheritune.records.analysis import Mask
from inheritune.report.charts.collapse import WATCHED, training_map
from inheritune.report.charts.curves import curves
from inheritune.report.page.figures import Context, Figures
from inheritune.report.read.models import Model
from inheritune.report.read.runs import Run
from inheritune.report.rows import measures, series

_WATCHED: tuple[list[tuple[str, Mask | None]], ...] = (
    [("max_rank", "causal"), ("max_rank", "full")],
    [("collapsed", "causal"), ("collapsed", "full")],
    [("query", None), ("key", None)],
)
"""What is watched; charts of one list stand side by side and share a colour scale."""


def loss_curves(
    runs: Sequence[Run], trained: Sequence[Model], palette: dict[str, str], figures: Figures
) -> Context | None:
    """Add the training curves; None when no run has a loss to draw."""
    rows = [row for run in runs for row in series.curve_rows(run)]
    if not rows:
        return None
    references = series.reference_rows(trained)
    losses = series.loss_range(rows, references)
    marks = [row for run in runs for row in series.round_rows(run)]
    return {
        "chart": figures.add(curves(rows, references, marks, palette, losses), "training-loss"),
        "references": [row["model"] for row in references],
        "rounds": bool(marks),
        "kinds": sorted({row["kind"] for row in rows}),
        "distilled": [run.label for run in runs if run.record.method == "distill"],
        "bin": max(series.bin_size(run) for run in runs),
        "cut": f"{losses[1]:.2f}" if any(row["loss"] > losses[1] for row in rows) else None,
    }


def watched(runs: Sequence[Run], figures: Figures) -> list[Context]:
    """Add the heat maps of collapse over training, for each run that was watched."""
    shown = [(run.label, [ids for each in _WATCHED if (ids := _side_by_side(run, each, figures))]) for run in runs]
    return [{"label": label, "groups": groups} for label, groups in shown if groups]


def _side_by_side(run: Run, wanted: list[tuple[str, Mask | None]], figures: Figures) -> list[str]:
    """Add the charts of one kind, which share a colour scale; nothing for what was not recorded."""
    logarithmic = WATCHED[wanted[0][0]].logarithmic
    drawn = [
        (quantity, mask, [row for row in rows if row["value"] > 0 or not logarithmic])
        for quantity, mask in wanted
        if (rows := measures.collapse_rows(run, quantity, mask))
    ]
    ends = measures.value_range([row for _, _, rows in drawn for row in rows], logarithmic)
    marks, ids = series.round_rows(run), []
    for quantity, mask, rows in drawn:
        if ends is None or not rows:
            continue
        title = f"{run.label[:20]}: {WATCHED[quantity].title}{f', {mask} mask' if mask else ''}"
        chart = training_map(rows, WATCHED[quantity], marks, title, ends)
        kind = quantity.replace("_", "") if mask else f"gradient-{quantity}"
        ids.append(figures.add(chart, f"{kind}-over-training", run.label, *([mask] if mask else [])))
    return ids
