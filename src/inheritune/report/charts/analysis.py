"""Charts of an analysis: a point for each layer, a cell or point for each head, measures and prices of blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import altair as alt

from inheritune.report.charts import base
from inheritune.report.rows.measures import MEASURED, ScaleType
from inheritune.report.rows.series import Row

Quantity = Literal["max_rank", "avg_mass"]
QUANTITIES: dict[Quantity, str] = {"max_rank": "MaxRank", "avg_mass": "AvgMass"}
TAU_COLOURS = ("#9ecae1", "#4292c6", "#2a78b8", "#7b5ea7", "#cc79a7", "#e69f00")
CLASS_COLOURS = {"sink": base.COLLAPSED_COLOUR, "uniform": "#7b5ea7", "potent": "#b9cde0"}
_BOUND = "bound (dash)"
_BELOW = {"orient": "bottom", "title": None, "direction": "horizontal"}
_LINED = 33
"""A map with more heads than this has no lines between its cells: they would be as wide as the cells."""

_TIPS = (
    *("layer", "head", "rank", "error", "rank_causal", "rank_full", "class", "collapsed"),
    *("mass", "entropy", "stable_rank", "sink_column", "sink_epsilon"),
)
_MASK_SHAPES = {"causal": "circle", "full": "triangle-up"}
_RULES = {MEASURED: "#1b7fc4", "first layers": "#8a8a8a", "Block Influence": "#e69f00", "angular distance": "#009e73"}
_MLP = {"mlp_rank": "MLP rank", "mlp_mass": "MLP mass, tokens"}


def profile(
    rows: Sequence[Row],
    quantity: Quantity,
    palette: dict[str, str],
    title: str,
    top: float,
    spread: bool = False,
    relative: bool = False,
) -> base.Picture:
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
    chart = base.over_layers(rows, palette, y, *shown)
    if relative:
        scale, axis = alt.Scale(domain=[0, 1], nice=False, padding=8), alt.Axis(tickCount=5)
        chart = chart.encode(x=alt.X("depth:Q", title="depth: first layer 0, last layer 1", scale=scale, axis=axis))
    layers = [
        chart.mark_area(opacity=opacity, clip=True).encode(
            y=alt.Y(f"{heads}_{low}:Q", title=QUANTITIES[quantity]), y2=f"{heads}_{high}:Q", tooltip=alt.value(None)
        )
        for low, high, opacity in (("low", "high", 0.14), ("q1", "q3", 0.26))
        if spread and rows
    ]
    layers += base.line_and_points(chart)
    if is_rank and any(row["lazy"] for row in rows):
        lazy = chart.transform_filter("datum.lazy").mark_point(shape="diamond", size=130, strokeWidth=2, opacity=1)
        layers.append(lazy.encode(color=alt.value(base.COLLAPSED_COLOUR)))
    return base.framed(title, 220, *layers)


def tau_sweep(rows: Sequence[Row], title: str, top: float) -> base.Picture:
    """Draw MaxRank of each layer for several tau up to `top`, a line for each (Fig. 10); rows of `series.tau_rows`."""
    domain = sorted({row["tau"] for row in rows}, key=float)
    shades = [TAU_COLOURS[i % len(TAU_COLOURS)] for i in range(len(domain))]
    legend = alt.Legend(**base.ACROSS, labelExpr="'τ = ' + datum.label", symbolType="stroke", symbolStrokeWidth=3)
    chart = alt.Chart(base.data(rows)).encode(
        x=base.layer_axis(),
        y=alt.Y("max_rank:Q", title="MaxRank", scale=alt.Scale(domain=[0, top], nice=True)),
        color=alt.Color("tau:N", scale=alt.Scale(domain=domain, range=shades), legend=legend),
        tooltip=base.tips(rows, "tau", "layer", "max_rank"),
    )
    return base.framed(title, 220, *base.line_and_points(chart, 30))


def rank_map(rows: Sequence[Row], highest: float, title: str) -> base.Picture:
    """Draw the Rank of each head, layers down and heads across, collapsed heads in vermillion (Fig. 11, 21, 22).

    Rows are of `series.head_rows`, of one model under one mask; `highest` is the Rank at the dark end of the colour
    scale (logarithmic from 1).
    """
    scale = alt.Scale(type="log", domain=[1, max(2.0, highest)], range=list(base.BLUES), interpolate="lab")
    colour = alt.Color("rank:Q", scale=scale, legend=base.gradient_legend("Rank (log scale)", format=".3~g"))
    return _grid(rows, alt.condition("datum.collapsed", alt.value(base.COLLAPSED_COLOUR), colour), title)


def class_map(rows: Sequence[Row], title: str) -> base.Picture:
    """Draw the class of each head, layers down and heads across; rows of `series.class_rows`.

    `sink`: collapsed under the causal mask; `uniform`: collapsed without the mask alone; `potent`: under neither.
    """
    scale = alt.Scale(domain=list(CLASS_COLOURS), range=list(CLASS_COLOURS.values()))
    legend = alt.Legend(**_BELOW, symbolType="square", symbolStrokeWidth=0)
    return _grid(rows, alt.Color("class:N", scale=scale, legend=legend), title)


def _grid(rows: Sequence[Row], colour: object, title: str) -> base.Picture:
    """Return a cell for each head, layers down and heads across."""
    depth, heads = len({row["layer"] for row in rows}), len({row["head"] for row in rows})
    line = {"stroke": "#ffffff", "strokeOpacity": 0.35, "strokeWidth": 1} if heads < _LINED else {}
    chart = alt.Chart(base.data(rows)).mark_rect(**line)
    chart = chart.encode(
        x=alt.X("head:O", axis=alt.Axis(title="head", labelAngle=0, labelOverlap=True, ticks=False)),
        y=alt.Y("layer:O", axis=alt.Axis(title="layer", labelOverlap=True, ticks=False)),
        color=colour,
        tooltip=base.tips(rows, *_TIPS),
    )
    return base.framed(title, max(110, min(16 * depth, 560)), chart)


def gradient_scatter(rows: Sequence[Row], title: str, over: Literal["epsilon", "layer"] = "epsilon") -> base.Picture:
    """Draw each head's gradient norm over its sink epsilon, and the bound of Theorem H.1 (iii) above it; logarithmic.

    Rows are of `measures.gradient_rows`, one weight (`query` or `key`) of one model; `over` is the horizontal axis, of
    `measures.gradient_axis`.
    """
    title_x, kind = ("ε of the sink, causal (log scale)", "log") if over == "epsilon" else ("layer", "linear")
    scale_x = alt.Scale(type=kind, zero=False, nice=False, padding=8)
    x = alt.X(f"{over}:Q", title=title_x, scale=scale_x, axis=alt.Axis(tickCount=4, format=".2~g", tickMinStep=1))
    bounded = any(row["bound"] is not None for row in rows)
    drawn = CLASS_COLOURS | {"potent": "#1b7fc4", "not classed": "#1b7fc4", _BOUND: "#8a8a8a"}
    scale = base.named_scale(drawn, [*rows, {"class": _BOUND}] if bounded else rows, "class")
    tooltip = base.tips(rows, "layer", "head", "gradient", "bound", "epsilon", "class")
    chart = alt.Chart(base.data(rows)).encode(x=x, tooltip=tooltip)
    points = chart.mark_point(filled=True, size=26, opacity=0.8).encode(
        y=_norm("gradient:Q"), color=alt.Color("class:N", scale=scale, legend=alt.Legend(**_BELOW))
    )
    if not bounded:
        return base.framed(title, 240, points)
    bounds = chart.transform_filter("datum.bound != null").mark_tick(thickness=1.5, size=7, orient="horizontal")
    return base.framed(title, 240, bounds.encode(y=_norm("bound:Q"), color=alt.datum(_BOUND)), points)


def _norm(field: str) -> alt.Y:
    axis = alt.Axis(tickCount=5, format=".1~e")
    return alt.Y(field, title="Frobenius norm (log scale)", axis=axis, scale=alt.Scale(type="log"))


def influence(rows: Sequence[Row], palette: dict[str, str], title: str, scale: ScaleType = "linear") -> base.Picture:
    """Draw Block Influence (ShortGPT: 1 - cosine of a block's input and output) of each block, a line for each model.

    Rows are of `measures.block_rows`, the scale of the vertical axis is of `measures.influence_scale`.
    """
    shown = ("model", "layer", "influence", "causal", "full")
    chart = base.over_layers(rows, palette, _influence_axis(rows, scale), *shown)
    return base.framed(title, 240, *base.line_and_points(chart))


def _influence_axis(rows: Sequence[Row], scale: ScaleType) -> alt.Y:
    """Return the axis of Block Influence; a symlog scale is logarithmic from the least value above 0 on."""
    if scale == "linear":
        return alt.Y("influence:Q", title="Block Influence", scale=alt.Scale(zero=True))
    constant = min(row["influence"] for row in rows if row["influence"] > 0)
    axis = alt.Axis(tickCount=5, format="~g")
    own = alt.Scale(type=scale, nice=False, padding=8, **({"constant": constant} if scale == "symlog" else {}))
    return alt.Y("influence:Q", title="Block Influence (log scale)", scale=own, axis=axis)


def agreement(rows: Sequence[Row], colour: str, title: str, scale: ScaleType = "linear") -> base.Picture:
    """Draw Block Influence over MaxRank, a point for each layer and mask; the mask is its shape.

    Rows are of `measures.agreement_rows`; `colour` is the model's, `scale` that of `influence`.
    """
    shapes = base.named_scale(_MASK_SHAPES, rows, "mask")
    chart = alt.Chart(base.data(rows)).mark_point(size=46, opacity=0.9, color=colour)
    chart = chart.encode(
        x=alt.X("max_rank:Q", title="MaxRank", scale=alt.Scale(zero=True, nice=True)),
        y=_influence_axis(rows, scale),
        shape=alt.Shape("mask:N", scale=shapes, legend=alt.Legend(**base.ACROSS, symbolStrokeColor=colour)),
        tooltip=base.tips(rows, "layer", "mask", "max_rank", "influence"),
    )
    return base.framed(title, 240, chart)


def angular_map(rows: Sequence[Row], title: str) -> base.Picture:
    """Draw the angular distance over spans of layers, and ring the closest span of each length (Gromov et al., Fig. 4).

    Rows are of `measures.angular_rows`.
    """
    depth = max(row["start"] for row in rows) + 1
    axis = {"labelOverlap": True, "ticks": False, "labelAngle": 0}
    scale = alt.Scale(range=["#fff3d6", "#e69f00", "#7a2e00"], interpolate="lab")
    chart = alt.Chart(base.data(rows)).encode(
        x=alt.X("start:O", axis=alt.Axis(title="first layer of the span", **axis)),
        y=alt.Y("span:O", sort="descending", axis=alt.Axis(title="layers in the span, n", **axis)),
        tooltip=base.tips(rows, "start", "end", "span", "distance", "best"),
    )
    cells = chart.mark_rect().encode(
        color=alt.Color("distance:Q", scale=scale, legend=base.gradient_legend("angular distance / π", format=".2~g"))
    )
    size = 30 if depth <= 40 else 8
    best = chart.transform_filter("datum.best").mark_point(filled=True, size=size, opacity=1, color="#0072b2")
    return base.framed(title, max(160, min(13 * depth, 420)), cells, best)


def mlp_profile(rows: Sequence[Row], quantity: str, palette: dict[str, str], title: str) -> base.Picture:
    """Draw rank or mass of the MLPs' outputs over the layers, a line for each model; a measure of ours.

    Rows are of `measures.block_rows`, `quantity` is `mlp_rank` or `mlp_mass`; the rank has a bar of one standard error.
    """
    kept = [row for row in rows if row[quantity] is not None]
    shown = ("mlp_rank", "mlp_rank_error") if quantity == "mlp_rank" else ("mlp_mass",)
    y = alt.Y(f"{quantity}:Q", title=_MLP[quantity], scale=alt.Scale(zero=True))
    chart = base.over_layers(kept, palette, y, "model", "layer", *shown)
    layers: list[alt.Chart] = []
    if quantity == "mlp_rank" and any(row["mlp_rank_low"] is not None for row in kept):
        bars = chart.transform_filter("datum.mlp_rank_low != null").mark_rule(strokeWidth=2, opacity=0.6)
        layers.append(bars.encode(y=alt.Y("mlp_rank_low:Q", title=_MLP[quantity]), y2="mlp_rank_high:Q"))
    return base.framed(title, 220, *layers, *base.line_and_points(chart))


def prices(rows: Sequence[Row], title: str) -> base.Picture:
    """Draw the loss that each layer adds when it is left out, with its interval; rows of `measures.price_rows`."""
    scale = alt.Scale(type="symlog", constant=0.1)
    price = {name: (name, ".3f") for name in ("price", "low", "high")}
    shown = base.tips(rows, "layer", "causal", "full", "influence", **price)
    chart = alt.Chart(base.data(rows)).encode(x=base.layer_axis(), tooltip=shown)
    axis = alt.Axis(values=[0, 0.1, 0.3, 1, 3, 10], format="~g")
    y = alt.Y("low:Q", title="nats a token (log scale)", scale=scale, axis=axis)
    bars = chart.mark_rule(strokeWidth=2, opacity=0.6, color="#1b7fc4").encode(y=y, y2="high:Q")
    points = chart.mark_point(filled=True, size=46, opacity=1, color="#1b7fc4").encode(y=alt.Y("price:Q", scale=scale))
    return base.framed(title, 240, bars, points)


def cuts(rows: Sequence[Row], uniform: float, title: str) -> base.Picture:
    """Draw the loss over the depth, a line for each rule, up to uniform guessing; rows of `measures.cut_rows`."""
    top = min(max(row["loss"] for row in rows), uniform)
    low = min(row["loss"] for row in rows)
    chart = alt.Chart(base.data(rows)).encode(
        x=alt.X(
            "depth:Q",
            title="layers that stay",
            scale=alt.Scale(reverse=True, zero=False),
            axis=alt.Axis(tickMinStep=1, format="d"),
        ),
        y=alt.Y("loss:Q", title="loss before training", scale=alt.Scale(domain=[low, top], zero=False, nice=True)),
        color=alt.Color("rule:N", scale=base.named_scale(_RULES, rows, "rule"), legend=alt.Legend(**base.ACROSS)),
        tooltip=base.tips(rows, rule=("rule", None), depth=("layers", "d"), loss=("loss", ".3f"), cut=("cut", None)),
    )
    return base.framed(title, 240, *base.line_and_points(chart.transform_filter(f"datum.loss <= {top + 0.001}"), 40))
