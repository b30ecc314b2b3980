"""Charts of what layers cost: the price of each, and the loss of the cut to each depth before training."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt

from inheritune.report.charts import base
from inheritune.report.rows.prices import MEASURED
from inheritune.report.rows.series import Row

_RULES = {MEASURED: "#1b7fc4", "first layers": "#8a8a8a", "Block Influence": "#e69f00", "angular distance": "#009e73"}


def prices(rows: Sequence[Row], title: str) -> base.Picture:
    """Draw the loss that each layer adds when it is left out, with its interval; rows of `prices.price_rows`."""
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
    """Draw the loss over the depth, a line for each rule, up to uniform guessing; rows of `prices.cut_rows`."""
    drawn = [rule for rule in _RULES if any(row["rule"] == rule for row in rows)]
    colours = alt.Scale(domain=drawn, range=[_RULES[rule] for rule in drawn])
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
        color=alt.Color("rule:N", scale=colours, legend=alt.Legend(**base.ACROSS)),
        tooltip=base.tips(rows, rule=("rule", None), depth=("layers", "d"), loss=("loss", ".3f"), cut=("cut", None)),
    )
    return base.framed(title, 240, *base.line_and_points(chart.transform_filter(f"datum.loss <= {top + 0.001}"), 40))
