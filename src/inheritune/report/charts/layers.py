"""Rank and mass over the layers of one or several models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import altair as alt

from inheritune.report.charts.base import COLLAPSED_COLOUR, data, layer_axis, model_colour, tips, title_of
from inheritune.report.rows.series import Row

Quantity = Literal["max_rank", "avg_mass"]
QUANTITIES: dict[Quantity, str] = {"max_rank": "MaxRank", "avg_mass": "AvgMass"}
_HEADS = {"max_rank": "rank", "avg_mass": "mass"}
TAU_COLOURS = ("#9ecae1", "#4292c6", "#2a78b8", "#7b5ea7", "#cc79a7", "#e69f00")


def profile(
    rows: Sequence[Row],
    quantity: Quantity,
    palette: dict[str, str],
    title: str,
    top: float,
    spread: bool = False,
    relative: bool = False,
) -> alt.LayerChart:
    """Draw MaxRank (eq. 3 of the paper) or AvgMass (App. C) of each layer, a line for each model.

    Args:
        rows: the layers of every model under one mask, of `series.layer_rows`.
        quantity: what to draw.
        palette: a colour for each model.
        title: what stands above the chart; it should name the mask.
        top: the highest value of the vertical axis, the same for charts that stand side by side.
        spread: draw the spread over the heads of a layer behind the line: a pale band from the lowest to the highest
            head, a darker one between the quartiles.
        relative: the horizontal axis is the depth, 0 for the first and 1 for the last layer, in which models of
            different depth can be compared.
    """
    x = _depth_axis() if relative else layer_axis()
    y = alt.Y(f"{quantity}:Q", title=QUANTITIES[quantity], scale=alt.Scale(domain=[0, top], nice=True))
    colour = model_colour(palette, [row["model"] for row in rows])
    base = alt.Chart(data(rows)).encode(x=x, y=y, color=colour, tooltip=_profile_tips(rows, quantity))
    layers = _bands(rows, quantity, base) if spread else []
    layers += [base.mark_line(strokeWidth=2), base.mark_point(filled=True, opacity=1, size=36)]
    if quantity == "max_rank" and any(row["lazy"] for row in rows):
        lazy = base.transform_filter("datum.lazy").mark_point(shape="diamond", size=130, strokeWidth=2, opacity=1)
        layers.append(lazy.encode(color=alt.value(COLLAPSED_COLOUR)))
    return alt.layer(*layers).properties(width="container", height=220, title=title_of(title))


def _depth_axis() -> alt.X:
    scale = alt.Scale(domain=[0, 1], nice=False, padding=8)
    return alt.X("depth:Q", title="depth: first layer 0, last layer 1", scale=scale, axis=alt.Axis(tickCount=5))


def _profile_tips(rows: Sequence[Row], quantity: Quantity) -> list[alt.Tooltip]:
    heads = _HEADS[quantity]
    error = ("top_head", "rank_error", "lazy") if quantity == "max_rank" else ()
    spread = [f"{heads}_{point}" for point in ("low", "q1", "median", "q3", "high")]
    return tips(rows, "model", "layer", quantity, *error, "heads", *spread)


def _bands(rows: Sequence[Row], quantity: Quantity, base: alt.Chart) -> list[alt.Chart]:
    """Return the spread over the heads: the range pale, the quartiles darker."""
    heads = _HEADS[quantity]
    if not any(f"{heads}_low" in row for row in rows):
        return []
    bands = (("low", "high", 0.14), ("q1", "q3", 0.26))
    return [
        base.mark_area(opacity=opacity, clip=True).encode(
            y=alt.Y(f"{heads}_{low}:Q", title=QUANTITIES[quantity]), y2=f"{heads}_{high}:Q", tooltip=alt.value(None)
        )
        for low, high, opacity in bands
    ]


def tau_sweep(rows: Sequence[Row], title: str, top: float) -> alt.LayerChart:
    """Draw MaxRank of each layer for several tau, a line for each (the paper's Fig. 10).

    Args:
        rows: of `series.tau_rows`.
        title: what stands above the chart; it should name the mask.
        top: the highest value of the vertical axis.
    """
    domain = sorted({row["tau"] for row in rows}, key=float)
    shades = [TAU_COLOURS[i % len(TAU_COLOURS)] for i in range(len(domain))]
    legend = alt.Legend(
        orient="top",
        direction="horizontal",
        title=None,
        labelExpr="'τ = ' + datum.label",
        symbolType="stroke",
        symbolStrokeWidth=3,
    )
    colour = alt.Color("tau:N", scale=alt.Scale(domain=domain, range=shades), legend=legend)
    y = alt.Y("max_rank:Q", title="MaxRank", scale=alt.Scale(domain=[0, top], nice=True))
    base = alt.Chart(data(rows)).encode(
        x=layer_axis(), y=y, color=colour, tooltip=tips(rows, "tau", "layer", "max_rank")
    )
    layers = [base.mark_line(strokeWidth=2), base.mark_point(filled=True, opacity=1, size=30)]
    return alt.layer(*layers).properties(width="container", height=220, title=title_of(title))
