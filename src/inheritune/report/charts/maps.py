"""Attention maps as small PNG images: 10,000 cells are a few kilobytes of picture and a megabyte of chart.

The page shows the bare picture with hover values; a file has it with axes.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence

import altair as alt
import numpy as np

from inheritune.report.charts.base import Picture, data, framed

ANCHORS = ("#0b0724", "#3b0f70", "#8c2981", "#de4968", "#fe9f6d", "#fcfdbf")
"""Dark to light at even steps; lightness grows all the way, so the order survives grey print and colour blindness."""
SIDE = 400
"""Least width and height of the drawn map in pixels."""


def colour_table() -> bytes:
    """Return 256 RGB colours, 3 bytes each, from the first anchor to the last."""
    anchors = np.array([list(bytes.fromhex(colour[1:])) for colour in ANCHORS])
    steps = np.linspace(0, len(anchors) - 1, 256)
    channels = [np.interp(steps, range(len(anchors)), channel) for channel in anchors.T]
    return np.rint(np.stack(channels, axis=1)).astype(np.uint8).tobytes()


def quantised(values: Sequence[Sequence[float]]) -> np.ndarray:
    """Return the weights of a (T, T) matrix as uint8: 255 times the square root, rounded.

    Uniform attention over 100 tokens (0.01) is then a tenth of the scale and not lost in its dark end. Weights outside
    [0, 1] are clipped. A byte b stands for the weight (b / 255)^2, which is off by at most 0.004 times the square root
    of the weight.
    """
    return np.rint(255 * np.sqrt(np.clip(values, 0, 1))).astype(np.uint8)


def attention_png(values: Sequence[Sequence[float]], scale: int = 1) -> bytes:
    """Return a (T, T) attention matrix as a PNG, row 0 at the top; the colour of a weight is its `quantised` byte.

    Each cell is `scale` pixels wide and high.
    """
    pixels = quantised(values).repeat(scale, axis=0).repeat(scale, axis=1)
    height, width = pixels.shape
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
        (b"PLTE", colour_table()),
        (b"IDAT", zlib.compress(np.pad(pixels, ((0, 0), (1, 0))).tobytes(), 9)),  # each line begins with its filter: 0
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(held)) + kind + held + struct.pack(">I", zlib.crc32(kind + held)) for kind, held in chunks
    )


def data_uri(png: bytes) -> str:
    """Return a PNG as a `data:` address that a page can hold."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


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
