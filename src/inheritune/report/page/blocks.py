"""Charts of whole blocks: their importance, their MLPs, and the gradients of their heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from inheritune.report.charts.blocks import agreement, angular_map, influence, mlp_profile
from inheritune.report.charts.heads import gradient_scatter
from inheritune.report.page.attention import each_analysed, threshold
from inheritune.report.page.figures import Context, Figures, short
from inheritune.report.read.analyses import Analysis
from inheritune.report.read.models import Model
from inheritune.report.rows import measures
from inheritune.report.text import findings

_SEEN = 0.02
"""A standard error of a smaller share than this of the axis hides behind its point."""
_WEIGHTS: tuple[tuple[Literal["query", "key"], str], ...] = (("query", "Q"), ("key", "K"))


def importance(shown: Sequence[Model], palette: dict[str, str], figures: Figures) -> list[Context]:
    """Add Block Influence beside MaxRank and the angular distance of spans, for each model that has them."""

    def draw(i: int, model: Model, analysis: Analysis) -> Context | None:
        return _influence(i, model, palette, figures) | _angles(i, model, analysis, figures)

    return each_analysed(shown, draw)


def _influence(i: int, model: Model, palette: dict[str, str], figures: Figures) -> Context:
    rows = [row for row in measures.block_rows(model) if row["influence"] is not None]
    pairs = measures.agreement_rows(model)
    if not rows:
        return {}
    name, scale = short(model.label), measures.influence_scale([row["influence"] for row in rows])
    chart = influence(rows, palette, "Block Influence of each layer", scale)
    ids = [figures.add(f"influence-{i}", chart, f"block-influence-{name}")]
    if pairs:
        title = f"{model.label[:24]}: influence over MaxRank"
        chart = agreement(pairs, palette[model.label], title, scale)
        ids.append(figures.add(f"agreement-{i}", chart, f"block-influence-over-maxrank-{name}"))
    return {"charts": ids, "logarithmic": scale != "linear", "agreement": findings.agreement_sentence(model)}


def _angles(i: int, model: Model, analysis: Analysis, figures: Figures) -> Context:
    spans = measures.angular_rows(analysis)
    if not spans:
        return {}
    depth = max(row["end"] for row in spans) + 1
    chart = angular_map(spans, f"{model.label[:24]}: angular distance")
    return {
        "angular": figures.add(f"angular-{i}", chart, f"angular-distance-{short(model.label)}"),
        "spans": findings.best_spans(spans, sorted({1, 2, 4, depth // 4, depth // 2} - {0})),
    }


def mlp(shown: Sequence[Model], palette: dict[str, str], figures: Figures) -> Context | None:
    """Add rank and mass of the MLPs' outputs, all models in one chart each; None where none was measured."""
    rows = [row for model in shown for row in measures.block_rows(model)]
    ids = []
    if any(row["mlp_rank"] is not None for row in rows):
        tau = threshold(shown, "max_rank")
        chart = mlp_profile(rows, "mlp_rank", palette, f"MLP rank of each layer, {tau}")
        ids.append(figures.add("mlp-rank", chart, "mlp-rank-of-each-layer"))
    if any(row["mlp_mass"] is not None for row in rows):
        eta = threshold(shown, "avg_mass")
        chart = mlp_profile(rows, "mlp_mass", palette, f"MLP mass of each layer, {eta}")
        ids.append(figures.add("mlp-mass", chart, "mlp-mass-of-each-layer"))
    known = [row for row in rows if row["mlp_rank_low"] is not None]
    top = max((row["mlp_rank"] for row in known), default=0.0)
    seen = any(row["mlp_rank_error"] > _SEEN * top for row in known)
    return {"charts": ids, "errors": bool(known), "seen": seen} if ids else None


def gradients(shown: Sequence[Model], figures: Figures) -> list[Context]:
    """Add the gradient probe beside the bounds of Theorem H.1, for each model that was probed."""

    def draw(i: int, model: Model, analysis: Analysis) -> Context | None:
        ids, bounded, over = [], False, "layer"
        for weight, letter in _WEIGHTS:
            rows = measures.gradient_rows(analysis, weight)
            rows = [row for row in rows if row["gradient"] is not None]
            if rows:
                bounded = bounded or any(row["bound"] is not None for row in rows)
                over = measures.gradient_axis(rows)
                chart = gradient_scatter(rows, f"{model.label[:24]}: ‖dL/dW_{letter}‖ of each head", over)
                ids.append(figures.add(f"gradient-{i}-{weight}", chart, f"gradient-{weight}-{short(model.label)}"))
        return {"charts": ids, "bounded": bounded, "over": over} if ids else None

    return each_analysed(shown, draw)
