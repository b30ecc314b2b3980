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


def attention_png(values: Sequence[Sequence[float]]) -> bytes:
    """Return a T x T attention matrix as a PNG of T x T pixels, row 0 at the top.

    The colour is the square root of the weight: uniform attention over 100 tokens (0.01) is then a tenth of the scale
    and not lost in its dark end. Weights outside [0, 1] are clipped.
    """
    pixels = b"".join(b"\0" + bytes(round(255 * min(max(weight, 0.0), 1.0) ** 0.5) for weight in row) for row in values)
    header = struct.pack(">IIBBBBB", len(values[0]), len(values), 8, 3, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"PLTE", colour_table()), (b"IDAT", zlib.compress(pixels, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def data_uri(png: bytes) -> str:
    """Return a PNG as a `data:` address that a page can hold."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
