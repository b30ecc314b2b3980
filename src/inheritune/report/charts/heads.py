"""One cell or point for each head of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import altair as alt

from inheritune.report.charts.base import BLUES, COLLAPSED_COLOUR, data, gradient_legend, tips, title_of
from inheritune.report.rows.series import Row

CLASS_COLOURS = {"sink": COLLAPSED_COLOUR, "uniform": "#7b5ea7", "potent": "#b9cde0"}
_BOUND = "bound (dash)"
_LINED = 33
"""A map with more heads than this has no lines between its cells: they would be as wide as the cells."""

_TIPS = (
    *("layer", "head", "rank", "error", "rank_causal", "rank_full", "class", "collapsed"),
    *("mass", "entropy", "stable_rank", "sink_column", "sink_epsilon"),
)


def rank_map(rows: Sequence[Row], highest: float, title: str) -> alt.Chart:
    """Draw the Rank of each head, layers down and heads across, collapsed heads in vermillion (Fig. 11, 21, 22).

    Args:
        rows: the heads of one model under one mask, of `series.head_rows`.
        highest: the Rank at the dark end of the colour scale (logarithmic from 1).
        title: what stands above the chart; it should name the model and the mask.
    """
    scale = alt.Scale(type="log", domain=[1, max(2.0, highest)], range=list(BLUES), interpolate="lab")
    colour = alt.Color("rank:Q", scale=scale, legend=gradient_legend("Rank (log scale)", format=".3~g"))
    return _grid(rows, alt.condition("datum.collapsed", alt.value(COLLAPSED_COLOUR), colour), title)


def class_map(rows: Sequence[Row], title: str) -> alt.Chart:
    """Draw the class of each head, layers down and heads across.

    `sink`: collapsed under the causal mask; `uniform`: collapsed without the mask alone; `potent`: under neither.

    Args:
        rows: the heads of one model that was analysed under both masks, of `series.class_rows`.
        title: what stands above the chart.
    """
    scale = alt.Scale(domain=list(CLASS_COLOURS), range=list(CLASS_COLOURS.values()))
    legend = alt.Legend(orient="bottom", title=None, direction="horizontal", symbolType="square", symbolStrokeWidth=0)
    return _grid(rows, alt.Color("class:N", scale=scale, legend=legend), title)


def _grid(rows: Sequence[Row], colour: object, title: str) -> alt.Chart:
    """Return a cell for each head, layers down and heads across."""
    depth, heads = len({row["layer"] for row in rows}), len({row["head"] for row in rows})
    line = {"stroke": "#ffffff", "strokeOpacity": 0.35, "strokeWidth": 1} if heads < _LINED else {}
    return (
        alt.Chart(data(rows))
        .mark_rect(**line)
        .encode(
            x=alt.X("head:O", axis=alt.Axis(title="head", labelAngle=0, labelOverlap=True, ticks=False)),
            y=alt.Y("layer:O", axis=alt.Axis(title="layer", labelOverlap=True, ticks=False)),
            color=colour,
            tooltip=tips(rows, *_TIPS),
        )
        .properties(width="container", height=max(110, min(16 * depth, 560)), title=title_of(title))
    )


def gradient_scatter(rows: Sequence[Row], title: str, over: Literal["epsilon", "layer"] = "epsilon") -> alt.LayerChart:
    """Draw each head's gradient norm over its sink epsilon, and the bound of Theorem H.1 (iii) above it; logarithmic.

    Args:
        rows: of `measures.gradient_rows`, one weight (`query` or `key`) of one model.
        title: what stands above the chart.
        over: the horizontal axis, of `measures.gradient_axis`.
    """
    title_x, kind = ("ε of the sink, causal (log scale)", "log") if over == "epsilon" else ("layer", "linear")
    scale_x = alt.Scale(type=kind, zero=False, nice=False, padding=8)
    x = alt.X(f"{over}:Q", title=title_x, scale=scale_x, axis=alt.Axis(tickCount=4, format=".2~g", tickMinStep=1))
    axis = alt.Axis(tickCount=5, format=".1~e")
    scale = alt.Scale(type="log")
    base = alt.Chart(data(rows)).encode(
        x=x, tooltip=tips(rows, "layer", "head", "gradient", "bound", "epsilon", "class")
    )
    points_of = CLASS_COLOURS | {"potent": "#1b7fc4", "not classed": "#1b7fc4"}
    names = {name: colour for name, colour in points_of.items() if any(row["class"] == name for row in rows)}
    bounded = any(row["bound"] is not None for row in rows)
    names |= {_BOUND: "#8a8a8a"} if bounded else {}
    legend = alt.Legend(orient="bottom", title=None, direction="horizontal")
    colour = alt.Color("class:N", scale=alt.Scale(domain=list(names), range=list(names.values())), legend=legend)
    points = base.mark_point(filled=True, size=26, opacity=0.8).encode(
        y=alt.Y("gradient:Q", title="Frobenius norm (log scale)", axis=axis, scale=scale), color=colour
    )
    if not bounded:
        return alt.layer(points).properties(width="container", height=240, title=title_of(title))
    bounds = base.transform_filter("datum.bound != null").mark_tick(thickness=1.5, size=7, orient="horizontal")
    y = alt.Y("bound:Q", title="Frobenius norm (log scale)", axis=axis, scale=scale)
    layers = [bounds.encode(y=y, color=alt.datum(_BOUND)), points]
    return alt.layer(*layers).properties(width="container", height=240, title=title_of(title))
