"""Rank and mass over the layers of one or several models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import altair as alt

from inheritune.report.charts.base import (
    ACROSS,
    COLLAPSED_COLOUR,
    Picture,
    data,
    framed,
    layer_axis,
    line_and_points,
    model_colour,
    tips,
)
from inheritune.report.rows.series import Row

Quantity = Literal["max_rank", "avg_mass"]
QUANTITIES: dict[Quantity, str] = {"max_rank": "MaxRank", "avg_mass": "AvgMass"}
TAU_COLOURS = ("#9ecae1", "#4292c6", "#2a78b8", "#7b5ea7", "#cc79a7", "#e69f00")


def profile(
    rows: Sequence[Row],
    quantity: Quantity,
    palette: dict[str, str],
    title: str,
    top: float,
    spread: bool = False,
    relative: bool = False,
) -> Picture:
    """Draw MaxRank (eq. 3 of the paper) or AvgMass (App. C) of each layer under one mask, a line for each model.

    Args:
        rows: of `series.layer_rows`, of every model.
        quantity: what to draw.
        palette: a colour for each model.
        title: it should name the mask.
        top: the highest value of the vertical axis, the same for charts that stand side by side.
        spread: draw the spread over the heads of a layer behind the line: a pale band from the lowest to the highest
            head, a darker one between the quartiles.
        relative: the horizontal axis is the depth, 0 for the first and 1 for the last layer, in which models of
            different depth can be compared.
    """
    heads, is_rank = quantity[4:], quantity == "max_rank"  # `rank` or `mass`, of the heads
    y = alt.Y(f"{quantity}:Q", title=QUANTITIES[quantity], scale=alt.Scale(domain=[0, top], nice=True))
    shown = ["model", "layer", quantity, *(("top_head", "rank_error", "lazy") if is_rank else ()), "heads"]
    shown += [f"{heads}_{point}" for point in ("low", "q1", "median", "q3", "high")]
    base = alt.Chart(data(rows)).encode(
        x=_depth_axis() if relative else layer_axis(),
        y=y,
        color=model_colour(palette, rows),
        tooltip=tips(rows, *shown),
    )
    layers = [
        base.mark_area(opacity=opacity, clip=True).encode(
            y=alt.Y(f"{heads}_{low}:Q", title=QUANTITIES[quantity]), y2=f"{heads}_{high}:Q", tooltip=alt.value(None)
        )
        for low, high, opacity in (("low", "high", 0.14), ("q1", "q3", 0.26))
        if spread and rows
    ]
    layers += line_and_points(base)
    if is_rank and any(row["lazy"] for row in rows):
        lazy = base.transform_filter("datum.lazy").mark_point(shape="diamond", size=130, strokeWidth=2, opacity=1)
        layers.append(lazy.encode(color=alt.value(COLLAPSED_COLOUR)))
    return framed(title, 220, *layers)


def _depth_axis() -> alt.X:
    scale = alt.Scale(domain=[0, 1], nice=False, padding=8)
    return alt.X("depth:Q", title="depth: first layer 0, last layer 1", scale=scale, axis=alt.Axis(tickCount=5))


def tau_sweep(rows: Sequence[Row], title: str, top: float) -> Picture:
    """Draw MaxRank of each layer for several tau up to `top`, a line for each (Fig. 10); rows of `series.tau_rows`."""
    domain = sorted({row["tau"] for row in rows}, key=float)
    shades = [TAU_COLOURS[i % len(TAU_COLOURS)] for i in range(len(domain))]
    legend = alt.Legend(**ACROSS, labelExpr="'τ = ' + datum.label", symbolType="stroke", symbolStrokeWidth=3)
    base = alt.Chart(data(rows)).encode(
        x=layer_axis(),
        y=alt.Y("max_rank:Q", title="MaxRank", scale=alt.Scale(domain=[0, top], nice=True)),
        color=alt.Color("tau:N", scale=alt.Scale(domain=domain, range=shades), legend=legend),
        tooltip=tips(rows, "tau", "layer", "max_rank"),
    )
    return framed(title, 220, *line_and_points(base, 30))
