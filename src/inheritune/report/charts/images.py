"""Attention maps as small PNG images: 10,000 cells are a few kilobytes of picture and a megabyte of chart."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence

ANCHORS = ("#0b0724", "#3b0f70", "#8c2981", "#de4968", "#fe9f6d", "#fcfdbf")
"""Dark to light at even steps; lightness grows all the way, so the order survives grey print and colour blindness."""


def colour_table() -> bytes:
    """Return 256 RGB colours, 3 bytes each, from the first anchor to the last."""
    anchors = [tuple(bytes.fromhex(colour[1:])) for colour in ANCHORS]
    table = bytearray()
    for i in range(256):
        place = i / 255 * (len(anchors) - 1)
        left = min(int(place), len(anchors) - 2)
        share = place - left
        table += bytes(round(a + (b - a) * share) for a, b in zip(anchors[left], anchors[left + 1], strict=True))
    return bytes(table)


def quantised(values: Sequence[Sequence[float]]) -> bytes:
    """Return the weights of a matrix as bytes, row by row: 255 times the square root, rounded.

    Uniform attention over 100 tokens (0.01) is then a tenth of the scale and not lost in its dark end. Weights outside
    [0, 1] are clipped. A byte b stands for the weight (b / 255)^2, which is off by at most 0.004 times the square root
    of the weight.
    """
    return bytes(round(255 * min(max(weight, 0.0), 1.0) ** 0.5) for row in values for weight in row)


def attention_png(values: Sequence[Sequence[float]], scale: int = 1) -> bytes:
    """Return a T x T attention matrix as a PNG, row 0 at the top; the colour of a weight is its `quantised` byte.

    Args:
        values: the weights, row by row.
        scale: width and height in pixels of each cell.
    """
    width = len(values[0])
    cells = quantised(values)
    pixels = bytearray()
    for start in range(0, len(cells), width):
        line = bytes(cell for cell in cells[start : start + width] for _ in range(scale))
        pixels += (b"\0" + line) * scale
    header = struct.pack(">IIBBBBB", width * scale, len(values) * scale, 8, 3, 0, 0, 0)
    chunks = (
        (b"IHDR", header),
        (b"PLTE", colour_table()),
        (b"IDAT", zlib.compress(bytes(pixels), 9)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def data_uri(png: bytes) -> str:
    """Return a PNG as a `data:` address that a page can hold."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
