"""Charts of whole blocks: their importance, their MLPs, and the gradients of their heads."""

from __future__ import annotations

from typing import Literal

from inheritune.report.charts.blocks import agreement, angular_map, influence, mlp_profile
from inheritune.report.charts.heads import gradient_scatter
from inheritune.report.page.attention import Analysed, each_analysed, threshold
from inheritune.report.page.figures import Context, Figures
from inheritune.report.read.analyses import Analysis
from inheritune.report.rows import measures
from inheritune.report.text import findings

_SEEN = 0.02
"""A standard error of a smaller share than this of the axis hides behind its point."""
_WEIGHTS: tuple[tuple[Literal["query", "key"], str], ...] = (("query", "Q"), ("key", "K"))
_MLP: tuple[tuple[Literal["mlp_rank", "mlp_mass"], str, str], ...] = (
    ("mlp_rank", "MLP rank of each layer", "max_rank"),
    ("mlp_mass", "MLP mass of each layer", "avg_mass"),
)


def importance(analysed: Analysed, palette: dict[str, str], figures: Figures) -> list[Context]:
    """Add Block Influence beside MaxRank and the angular distance of spans, for each model that has them."""

    def draw(label: str, analysis: Analysis) -> Context | None:
        return _influence(label, analysis, palette, figures) | _angles(label, analysis, figures)

    return each_analysed(analysed, draw)


def _influence(label: str, analysis: Analysis, palette: dict[str, str], figures: Figures) -> Context:
    rows = [row for row in measures.block_rows(label, analysis) if row["influence"] is not None]
    if not rows:
        return {}
    scale = measures.influence_scale([row["influence"] for row in rows])
    chart = influence(rows, palette, "Block Influence of each layer", scale)
    ids = [figures.add(chart, "block-influence", label)]
    pairs = measures.agreement_rows(analysis)
    if pairs:
        chart = agreement(pairs, palette[label], f"{label[:24]}: influence over MaxRank", scale)
        ids.append(figures.add(chart, "block-influence-over-maxrank", label))
    return {"charts": ids, "logarithmic": scale != "linear", "agreement": findings.agreement_sentence(analysis)}


def _angles(label: str, analysis: Analysis, figures: Figures) -> Context:
    spans = measures.angular_rows(analysis)
    if not spans:
        return {}
    depth = max(row["end"] for row in spans) + 1
    return {
        "angular": figures.add(angular_map(spans, f"{label[:24]}: angular distance"), "angular-distance", label),
        "spans": findings.best_spans(spans, sorted({1, 2, 4, depth // 4, depth // 2} - {0})),
    }


def mlp(analysed: Analysed, palette: dict[str, str], figures: Figures) -> Context | None:
    """Add rank and mass of the MLPs' outputs, all models in one chart each; None where none was measured."""
    rows = [row for label, analysis in analysed.items() for row in measures.block_rows(label, analysis)]
    ids = [
        figures.add(mlp_profile(rows, name, palette, f"{title}, {threshold(analysed, like)}"), title)
        for name, title, like in _MLP
        if any(row[name] is not None for row in rows)
    ]
    known = [row for row in rows if row["mlp_rank_low"] is not None]
    top = max((row["mlp_rank"] for row in known), default=0.0)
    seen = any(row["mlp_rank_error"] > _SEEN * top for row in known)
    return {"charts": ids, "errors": bool(known), "seen": seen} if ids else None


def gradients(analysed: Analysed, figures: Figures) -> list[Context]:
    """Add the gradient probe beside the bounds of Theorem H.1, for each model that was probed."""

    def draw(label: str, analysis: Analysis) -> Context | None:
        ids, bounded, over = [], False, "layer"
        for weight, letter in _WEIGHTS:
            rows = [row for row in measures.gradient_rows(analysis, weight) if row["gradient"] is not None]
            if rows:
                bounded = bounded or any(row["bound"] is not None for row in rows)
                over = measures.gradient_axis(rows)
                chart = gradient_scatter(rows, f"{label[:24]}: ‖dL/dW_{letter}‖ of each head", over)
                ids.append(figures.add(chart, f"gradient-{weight}", label))
        return {"charts": ids, "bounded": bounded, "over": over} if ids else None

    return each_analysed(analysed, draw)
