"""The sections of the page: which charts there are, and what stands beside them."""

from __future__ import annotations

from inheritune.report.charts.base import colours
from inheritune.report.charts.images import ANCHORS
from inheritune.report.page import attention, blocks, training
from inheritune.report.page.figures import Context, Figures
from inheritune.report.page.maps import maps
from inheritune.report.read.models import Sources, models
from inheritune.report.text import findings, tables
from inheritune.spectra.result import COLLAPSED_RANK


def build(sources: Sources) -> tuple[Figures, Context]:
    """Return all charts of the page, and what its template shows beside them."""
    shown, analysed, figures = sources.shown, sources.analysed, Figures()
    trained = models(sources.runs)
    references = [model.label for model in trained if model.run is None]
    palette = colours(references, [model.label for model in shown if model.label not in references])
    context: Context = {
        "curves": training.loss_curves(sources.runs, trained, palette, figures),
        "watched": training.watched(sources.runs, figures),
        "analysed": list(analysed),
        "not_analysed": [model.label for model in shown if model.analysis is None],
        "analyses": findings.analysis_table(analysed),
        "conditions": attention.conditions(analysed),
        "caution": findings.unlike_lengths(analysed),
        "profiles": attention.profiles(analysed, palette, figures),
        "taus": attention.taus(analysed, figures),
        "heads": attention.heads(analysed, figures),
        "classes": attention.classes(analysed, figures),
        "importance": blocks.importance(analysed, palette, figures),
        "mlp": blocks.mlp(analysed, palette, figures),
        "gradients": blocks.gradients(analysed, figures),
        "advice": [advice for advice in map(findings.recommendation, shown) if advice is not None],
        "maps": maps(analysed),
        "map_colours": ", ".join(ANCHORS),
        "collapsed_below": COLLAPSED_RANK,
    }
    return figures, context


def settings(sources: Sources) -> list[Context]:
    """Return what it takes to make each run and each analysis again."""
    import yaml

    runs: list[Context] = [
        {
            "label": run.label,
            "pairs": tables.settings(run),
            "recipe": yaml.safe_dump(run.record.recipe, sort_keys=False, allow_unicode=True),
        }
        for run in sources.runs
    ]
    alone = {model.label: model.analysis for model in sources.studies if model.analysis}
    return runs + [
        {"label": label, "pairs": tables.study_settings(analysis), "recipe": None} for label, analysis in alone.items()
    ]
