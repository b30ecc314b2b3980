"""Measures of whole blocks and of their MLPs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import altair as alt

from inheritune.report.charts.base import (
    ACROSS,
    Picture,
    data,
    framed,
    gradient_legend,
    layer_axis,
    line_and_points,
    model_colour,
    tips,
)
from inheritune.report.rows.measures import ScaleType
from inheritune.report.rows.series import Row

_MASK_SHAPES = {"causal": "circle", "full": "triangle-up"}
_MLP = {"mlp_rank": "MLP rank", "mlp_mass": "MLP mass, tokens"}


def influence(rows: Sequence[Row], palette: dict[str, str], title: str, scale: ScaleType = "linear") -> Picture:
    """Draw Block Influence (ShortGPT: 1 - cosine of a block's input and output) of each block, a line for each model.

    Rows are of `measures.block_rows`, the scale of the vertical axis is of `measures.influence_scale`.
    """
    shown = tips(rows, "model", "layer", "influence", "causal", "full")
    base = alt.Chart(data(rows)).encode(
        x=layer_axis(), y=_influence_axis(rows, scale), color=model_colour(palette, rows), tooltip=shown
    )
    return framed(title, 240, *line_and_points(base))


def _influence_axis(rows: Sequence[Row], scale: ScaleType) -> alt.Y:
    """Return the axis of Block Influence; a symlog scale is logarithmic from the least value above 0 on."""
    if scale == "linear":
        return alt.Y("influence:Q", title="Block Influence", scale=alt.Scale(zero=True))
    constant = min(row["influence"] for row in rows if row["influence"] > 0)
    axis = alt.Axis(tickCount=5, format="~g")
    own = alt.Scale(type=scale, nice=False, padding=8, **({"constant": constant} if scale == "symlog" else {}))
    return alt.Y("influence:Q", title="Block Influence (log scale)", scale=own, axis=axis)


def agreement(rows: Sequence[Row], colour: str, title: str, scale: ScaleType = "linear") -> Picture:
    """Draw Block Influence over MaxRank, a point for each layer and mask; the mask is its shape.

    Rows are of `measures.agreement_rows`; `colour` is the model's, `scale` that of `influence`.
    """
    masks = [mask for mask in _MASK_SHAPES if any(row["mask"] == mask for row in rows)]
    shapes = alt.Scale(domain=masks, range=[_MASK_SHAPES[mask] for mask in masks])
    chart = alt.Chart(data(rows)).mark_point(size=46, opacity=0.9, color=colour)
    chart = chart.encode(
        x=alt.X("max_rank:Q", title="MaxRank", scale=alt.Scale(zero=True, nice=True)),
        y=_influence_axis(rows, scale),
        shape=alt.Shape("mask:N", scale=shapes, legend=alt.Legend(**ACROSS, symbolStrokeColor=colour)),
        tooltip=tips(rows, "layer", "mask", "max_rank", "influence"),
    )
    return framed(title, 240, chart)


def angular_map(rows: Sequence[Row], title: str) -> Picture:
    """Draw the angular distance over spans of layers, and ring the closest span of each length (Gromov et al., Fig. 4).

    Rows are of `measures.angular_rows`.
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
    return framed(title, max(160, min(13 * depth, 420)), cells, best)


def mlp_profile(
    rows: Sequence[Row], quantity: Literal["mlp_rank", "mlp_mass"], palette: dict[str, str], title: str
) -> Picture:
    """Draw rank or mass of the MLPs' outputs over the layers, a line for each model; a measure of ours.

    Rows are of `measures.block_rows`; the rank has a bar of one standard error up and down.
    """
    kept = [row for row in rows if row[quantity] is not None]
    shown = ("mlp_rank", "mlp_rank_error") if quantity == "mlp_rank" else ("mlp_mass",)
    y = alt.Y(f"{quantity}:Q", title=_MLP[quantity], scale=alt.Scale(zero=True))
    base = alt.Chart(data(kept)).encode(
        x=layer_axis(), y=y, color=model_colour(palette, kept), tooltip=tips(kept, "model", "layer", *shown)
    )
    layers: list[alt.Chart] = []
    if quantity == "mlp_rank" and any(row["mlp_rank_low"] is not None for row in kept):
        bars = base.transform_filter("datum.mlp_rank_low != null").mark_rule(strokeWidth=2, opacity=0.6)
        layers.append(bars.encode(y=alt.Y("mlp_rank_low:Q", title=_MLP[quantity]), y2="mlp_rank_high:Q"))
    return framed(title, 220, *layers, *line_and_points(base))
