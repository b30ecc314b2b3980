"""Attention maps as small PNG images: 10,000 cells are a few kilobytes of picture and a megabyte of chart."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence

import numpy as np

ANCHORS = ("#0b0724", "#3b0f70", "#8c2981", "#de4968", "#fe9f6d", "#fcfdbf")
"""Dark to light at even steps; lightness grows all the way, so the order survives grey print and colour blindness."""


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
