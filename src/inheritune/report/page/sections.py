"""The sections of the page: which charts there are, of training and of analyses, and what stands around them."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import yaml

from inheritune.records.analysis import Mask
from inheritune.records.base import now
from inheritune.records.runs import FrontierRecord
from inheritune.report.charts.base import colours
from inheritune.report.charts.frontier import frontier as frontier_chart
from inheritune.report.charts.maps import ANCHORS
from inheritune.report.charts.training import WATCHED, curves, training_map
from inheritune.report.page import analyses
from inheritune.report.page.figures import Context, Figures
from inheritune.report.read.folders import Run
from inheritune.report.read.models import Model, Sources, models
from inheritune.report.rows import measures, series
from inheritune.report.text import findings, tables
from inheritune.report.text.frontier import frontier_table, frontier_verdict
from inheritune.spectra.result import COLLAPSED_RANK

_WATCHED: tuple[list[tuple[str, Mask | None]], ...] = (
    [("max_rank", "causal"), ("max_rank", "full")],
    [("collapsed", "causal"), ("collapsed", "full")],
    [("query", None), ("key", None)],
)
"""What is watched; charts of one list stand side by side and share a colour scale."""


def build(sources: Sources) -> tuple[Figures, Context]:
    """Return all charts of the page, and what its template shows around them."""
    runs, shown, analysed, trained = sources.runs, sources.shown, sources.analysed, models(sources.runs)
    references = [model.label for model in trained if model.run is None]
    figures = Figures(colours(references, [model.label for model in shown if model.label not in references]))
    each = functools.partial(analyses.each_analysed, analysed, figures)
    tests = [held.comparison for run in runs for held in run.record.rounds]
    tests += [run.record.result.comparison for run in runs]
    labels = [run.label for run in runs] + [model.label for model in sources.studies]
    context: Context = {
        "title": f"Inheritune report: {', '.join(labels)}",
        "verdict": findings.opening(sources),
        "created": now(),
        "frontiers": [frontier(record, figures) for _, record in sources.frontiers],
        "curves": loss_curves(runs, trained, figures),
        "trained": bool(runs),
        "models": tables.model_table(trained),
        "rounds": tables.rounds_table(runs) if any(run.record.rounds for run in runs) else None,
        "grown": any(len(run.record.rounds) > 1 for run in runs),
        "margins": sorted({f"{test.margin:g}" for test in tests if test is not None}),
        "samples": _samples(trained),
        "settings": settings(sources),
        "watched": watched(runs, figures),
        "analysed": list(analysed),
        "not_analysed": [model.label for model in shown if model.analysis is None],
        "analyses": findings.analysis_table(analysed),
        "conditions": analyses.conditions(analysed),
        "caution": findings.unlike_lengths(analysed),
        "profiles": analyses.profiles(analysed, figures),
        "taus": each(analyses.taus),
        "heads": each(functools.partial(analyses.heads, highest=series.highest_rank(analysed.values()))),
        "classes": each(analyses.classes),
        "prices": each(analyses.prices),
        "importance": each(analyses.importance),
        "mlp": analyses.mlp(analysed, figures),
        "gradients": each(analyses.gradients),
        "advice": [advice for advice in map(findings.recommendation, shown) if advice is not None],
        "maps": analyses.maps(analysed),
        "map_colours": ", ".join(ANCHORS),
        "collapsed_below": COLLAPSED_RANK,
    }
    return figures, context


def frontier(record: FrontierRecord, figures: Figures) -> Context:
    """Add what each depth costs against what it gains."""
    return {
        "name": record.name,
        "sentence": frontier_verdict(record),
        "shipped": record.shipped,
        "chart": figures.add(frontier_chart(record), "frontier", record.name),
        "table": frontier_table(record),
        "fast": all(point.speed_ratio for point in record.points),
        "margin": f"{record.points[0].comparison.margin:g}",
    }


def _samples(shown: Sequence[Model]) -> list[Context]:
    """Return the generated text of each model that has one; a text that repeats its prompt is shown without it."""
    return [
        {"label": model.label, "prompt": sample.prompt, "text": sample.text.removeprefix(sample.prompt)}
        for model in shown
        if model.record is not None and (sample := model.record.sample) is not None
    ]


def settings(sources: Sources) -> list[Context]:
    """Return what it takes to make each run and each analysis again."""
    runs: list[Context] = [
        {
            "label": run.label,
            "pairs": tables.settings(run),
            "recipe": yaml.safe_dump(run.record.recipe, sort_keys=False, allow_unicode=True),
        }
        for run in sources.runs
    ]
    return runs + [
        {"label": model.label, "pairs": tables.study_settings(model.analysis), "recipe": None}
        for model in sources.studies
        if model.analysis
    ]


def loss_curves(runs: Sequence[Run], trained: Sequence[Model], figures: Figures) -> Context | None:
    """Add the training curves; None when no run has a loss to draw."""
    rows = [row for run in runs for row in series.curve_rows(run)]
    if not rows:
        return None
    references = series.reference_rows(trained)
    losses = series.loss_range(rows, references)
    marks = [row for run in runs for row in series.round_rows(run)]
    return {
        "chart": figures.add(curves(rows, references, marks, figures.palette, losses), "training-loss"),
        "references": [row["model"] for row in references],
        "rounds": bool(marks),
        "kinds": sorted({row["kind"] for row in rows}),
        "distilled": [run.label for run in runs if run.record.taught],
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
