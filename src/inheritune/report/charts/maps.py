"""An attention map as a picture with axes, for a file; the page shows the bare picture with hover values."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt

from inheritune.report.charts.base import Picture, data, framed
from inheritune.report.charts.images import ANCHORS, attention_png, data_uri

SIDE = 400
"""Least width and height of the drawn map in pixels."""


def attention_picture(values: Sequence[Sequence[float]], title: str) -> Picture:
    """Draw a (T, T) attention matrix, first token at the top left; a weight's colour is that of its square root."""
    size = len(values)
    scale = max(1, -(-SIDE // size))
    side = size * scale
    row = {"url": data_uri(attention_png(values, scale)), "x": 0, "x2": size, "y": 0, "y2": size}
    span = {"domain": [0, size], "nice": False}
    axis = alt.Axis(grid=False, tickCount=5, format="d")
    picture = alt.Chart(data([row])).mark_image(width=side, height=side, align="left", baseline="top", aria=False)
    picture = picture.encode(
        x=alt.X("x:Q", scale=alt.Scale(**span), title="token attended to", axis=axis),
        y=alt.Y("y:Q", scale=alt.Scale(**span, reverse=True), title="token that attends", axis=axis),
        url="url:N",
    )
    return framed(title, side, picture, _key()).properties(width=side)


def _key() -> alt.Chart:
    """Return points that are not seen and whose colour scale is the picture's, so that a legend is drawn."""
    scale = alt.Scale(type="sqrt", domain=[0, 1], range=list(ANCHORS), interpolate="rgb")
    legend = alt.Legend(
        title="weight", orient="right", gradientLength=180, values=[0, 0.05, 0.25, 0.5, 1], format=".2~f"
    )
    ends = alt.Chart(data([{"weight": 0}, {"weight": 1}])).mark_point(opacity=0)
    return ends.encode(color=alt.Color("weight:Q", scale=scale, legend=legend))
