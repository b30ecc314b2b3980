"""One cell or point for each head of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import altair as alt

from inheritune.report.charts.base import BLUES, COLLAPSED_COLOUR, Picture, data, framed, gradient_legend, tips
from inheritune.report.rows.series import Row

CLASS_COLOURS = {"sink": COLLAPSED_COLOUR, "uniform": "#7b5ea7", "potent": "#b9cde0"}
_BOUND = "bound (dash)"
_BELOW = {"orient": "bottom", "title": None, "direction": "horizontal"}
_LINED = 33
"""A map with more heads than this has no lines between its cells: they would be as wide as the cells."""

_TIPS = (
    *("layer", "head", "rank", "error", "rank_causal", "rank_full", "class", "collapsed"),
    *("mass", "entropy", "stable_rank", "sink_column", "sink_epsilon"),
)


def rank_map(rows: Sequence[Row], highest: float, title: str) -> Picture:
    """Draw the Rank of each head, layers down and heads across, collapsed heads in vermillion (Fig. 11, 21, 22).

    Rows are of `series.head_rows`, of one model under one mask; `highest` is the Rank at the dark end of the colour
    scale (logarithmic from 1).
    """
    scale = alt.Scale(type="log", domain=[1, max(2.0, highest)], range=list(BLUES), interpolate="lab")
    colour = alt.Color("rank:Q", scale=scale, legend=gradient_legend("Rank (log scale)", format=".3~g"))
    return _grid(rows, alt.condition("datum.collapsed", alt.value(COLLAPSED_COLOUR), colour), title)


def class_map(rows: Sequence[Row], title: str) -> Picture:
    """Draw the class of each head, layers down and heads across; rows of `series.class_rows`.

    `sink`: collapsed under the causal mask; `uniform`: collapsed without the mask alone; `potent`: under neither.
    """
    scale = alt.Scale(domain=list(CLASS_COLOURS), range=list(CLASS_COLOURS.values()))
    legend = alt.Legend(**_BELOW, symbolType="square", symbolStrokeWidth=0)
    return _grid(rows, alt.Color("class:N", scale=scale, legend=legend), title)


def _grid(rows: Sequence[Row], colour: object, title: str) -> Picture:
    """Return a cell for each head, layers down and heads across."""
    depth, heads = len({row["layer"] for row in rows}), len({row["head"] for row in rows})
    line = {"stroke": "#ffffff", "strokeOpacity": 0.35, "strokeWidth": 1} if heads < _LINED else {}
    chart = alt.Chart(data(rows)).mark_rect(**line)
    chart = chart.encode(
        x=alt.X("head:O", axis=alt.Axis(title="head", labelAngle=0, labelOverlap=True, ticks=False)),
        y=alt.Y("layer:O", axis=alt.Axis(title="layer", labelOverlap=True, ticks=False)),
        color=colour,
        tooltip=tips(rows, *_TIPS),
    )
    return framed(title, max(110, min(16 * depth, 560)), chart)


def gradient_scatter(rows: Sequence[Row], title: str, over: Literal["epsilon", "layer"] = "epsilon") -> Picture:
    """Draw each head's gradient norm over its sink epsilon, and the bound of Theorem H.1 (iii) above it; logarithmic.

    Rows are of `measures.gradient_rows`, one weight (`query` or `key`) of one model; `over` is the horizontal axis, of
    `measures.gradient_axis`.
    """
    title_x, kind = ("ε of the sink, causal (log scale)", "log") if over == "epsilon" else ("layer", "linear")
    scale_x = alt.Scale(type=kind, zero=False, nice=False, padding=8)
    x = alt.X(f"{over}:Q", title=title_x, scale=scale_x, axis=alt.Axis(tickCount=4, format=".2~g", tickMinStep=1))
    bounded = any(row["bound"] is not None for row in rows)
    drawn = CLASS_COLOURS | {"potent": "#1b7fc4", "not classed": "#1b7fc4"}
    names = {name: colour for name, colour in drawn.items() if any(row["class"] == name for row in rows)}
    names |= {_BOUND: "#8a8a8a"} if bounded else {}
    scale = alt.Scale(domain=list(names), range=list(names.values()))
    tooltip = tips(rows, "layer", "head", "gradient", "bound", "epsilon", "class")
    base = alt.Chart(data(rows)).encode(x=x, tooltip=tooltip)
    points = base.mark_point(filled=True, size=26, opacity=0.8).encode(
        y=_norm("gradient:Q"), color=alt.Color("class:N", scale=scale, legend=alt.Legend(**_BELOW))
    )
    if not bounded:
        return framed(title, 240, points)
    bounds = base.transform_filter("datum.bound != null").mark_tick(thickness=1.5, size=7, orient="horizontal")
    return framed(title, 240, bounds.encode(y=_norm("bound:Q"), color=alt.datum(_BOUND)), points)


def _norm(field: str) -> alt.Y:
    axis = alt.Axis(tickCount=5, format=".1~e")
    return alt.Y(field, title="Frobenius norm (log scale)", axis=axis, scale=alt.Scale(type="log"))
