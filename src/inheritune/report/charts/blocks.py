"""Measures of whole blocks and of their MLPs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import altair as alt

from inheritune.report.charts.base import data, gradient_legend, layer_axis, model_colour, tips, title_of
from inheritune.report.rows.measures import ScaleType
from inheritune.report.rows.series import Row

_MASK_SHAPES = {"causal": "circle", "full": "triangle-up"}
_MLP = {"mlp_rank": "MLP rank", "mlp_mass": "MLP mass, tokens"}


def influence(rows: Sequence[Row], palette: dict[str, str], title: str, scale: ScaleType = "linear") -> alt.LayerChart:
    """Draw Block Influence (ShortGPT: 1 - cosine of a block's input and output) of each block, a line for each model.

    Args:
        rows: of `measures.block_rows`.
        palette: a colour for each model.
        title: what stands above the chart.
        scale: of the vertical axis, of `measures.influence_scale`.
    """
    colour = model_colour(palette, [row["model"] for row in rows])
    y = _influence_axis(rows, scale)
    base = alt.Chart(data(rows)).encode(
        x=layer_axis(), y=y, color=colour, tooltip=tips(rows, "model", "layer", "influence", "causal", "full")
    )
    layers = [base.mark_line(strokeWidth=2), base.mark_point(filled=True, opacity=1, size=36)]
    return alt.layer(*layers).properties(width="container", height=240, title=title_of(title))


def _influence_axis(rows: Sequence[Row], scale: ScaleType) -> alt.Y:
    """Return the axis of Block Influence; a symlog scale is logarithmic from the least value above 0 on."""
    if scale == "linear":
        return alt.Y("influence:Q", title="Block Influence", scale=alt.Scale(zero=True))
    constant = min(row["influence"] for row in rows if row["influence"] > 0)
    axis = alt.Axis(tickCount=5, format="~g")
    own = alt.Scale(type=scale, nice=False, padding=8, **({"constant": constant} if scale == "symlog" else {}))
    return alt.Y("influence:Q", title="Block Influence (log scale)", scale=own, axis=axis)


def agreement(rows: Sequence[Row], colour: str, title: str, scale: ScaleType = "linear") -> alt.Chart:
    """Draw Block Influence over MaxRank, a point for each layer and mask; the mask is its shape.

    Args:
        rows: of `measures.agreement_rows`, of one model.
        colour: of the model, which is its own in every chart.
        title: what stands above the chart.
        scale: of the vertical axis, of `measures.influence_scale`.
    """
    masks = [mask for mask in _MASK_SHAPES if any(row["mask"] == mask for row in rows)]
    shapes = alt.Scale(domain=masks, range=[_MASK_SHAPES[mask] for mask in masks])
    legend = alt.Legend(orient="top", title=None, direction="horizontal", symbolStrokeColor=colour)
    return (
        alt.Chart(data(rows))
        .mark_point(size=46, opacity=0.9, color=colour)
        .encode(
            x=alt.X("max_rank:Q", title="MaxRank", scale=alt.Scale(zero=True, nice=True)),
            y=_influence_axis(rows, scale),
            shape=alt.Shape("mask:N", scale=shapes, legend=legend),
            tooltip=tips(rows, "layer", "mask", "max_rank", "influence"),
        )
        .properties(width="container", height=240, title=title_of(title))
    )


def angular_map(rows: Sequence[Row], title: str) -> alt.LayerChart:
    """Draw the angular distance over spans of layers, and ring the closest span of each length (Gromov et al., Fig. 4).

    Args:
        rows: of `measures.angular_rows`, of one model.
        title: what stands above the chart.
    """
    depth = max(row["start"] for row in rows) + 1
    axis = {"labelOverlap": True, "ticks": False, "labelAngle": 0}
    scale = alt.Scale(range=["#fff3d6", "#e69f00", "#7a2e00"], interpolate="lab")
    base = alt.Chart(data(rows)).encode(
        x=alt.X("start:O", axis=alt.Axis(title="first layer of the span", **axis)),
        y=alt.Y("span:O", sort="descending", axis=alt.Axis(title="layers in the span, n", **axis)),
        tooltip=tips(rows, "start", "end", "span", "distance", "best"),
    )
    cells = base.mark_rect().encode(
        color=alt.Color("distance:Q", scale=scale, legend=gradient_legend("angular distance / π", format=".2~g"))
    )
    size = 30 if depth <= 40 else 8
    best = base.transform_filter("datum.best").mark_point(filled=True, size=size, opacity=1, color="#0072b2")
    height = max(160, min(13 * depth, 420))
    return alt.layer(cells, best).properties(width="container", height=height, title=title_of(title))


def mlp_profile(
    rows: Sequence[Row], quantity: Literal["mlp_rank", "mlp_mass"], palette: dict[str, str], title: str
) -> alt.LayerChart:
    """Draw rank or mass of the MLPs' outputs over the layers, a line for each model; a measure of ours.

    Args:
        rows: of `measures.block_rows`.
        quantity: what to draw; the rank has a bar of one standard error up and down.
        palette: a colour for each model.
        title: what stands above the chart.
    """
    kept = [row for row in rows if row[quantity] is not None]
    shown = ("mlp_rank", "mlp_rank_error") if quantity == "mlp_rank" else ("mlp_mass",)
    y = alt.Y(f"{quantity}:Q", title=_MLP[quantity], scale=alt.Scale(zero=True))
    colour = model_colour(palette, [row["model"] for row in kept])
    base = alt.Chart(data(kept)).encode(x=layer_axis(), y=y, color=colour, tooltip=tips(kept, "model", "layer", *shown))
    layers: list[alt.Chart] = []
    if quantity == "mlp_rank" and any(row["mlp_rank_low"] is not None for row in kept):
        bars = base.transform_filter("datum.mlp_rank_low != null").mark_rule(strokeWidth=2, opacity=0.6)
        layers.append(bars.encode(y=alt.Y("mlp_rank_low:Q", title=_MLP[quantity]), y2="mlp_rank_high:Q"))
    layers += [base.mark_line(strokeWidth=2), base.mark_point(filled=True, opacity=1, size=36)]
    return alt.layer(*layers).properties(width="container", height=220, title=title_of(title))
