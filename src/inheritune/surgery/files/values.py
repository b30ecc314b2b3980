"""The values of stored tensors, read in blocks: are two the same, and does any hold NaN or infinity?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from threading import Event
from typing import TYPE_CHECKING

import numpy as np

from inheritune.checkpoints.stored import StoredTensor
from inheritune.errors import ModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_INFINITY = {
    "F64": (np.uint64, 0x7FF << 52),
    "F32": (np.uint32, 0x7F800000),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
}
"""For each type with NaN and infinity, whole numbers as wide, and the bits of its exponent."""

_BLOCK = 1 << 20
"""Bytes read at once, a multiple of every type's; what stays in the processor's cache is fast to look through."""


def same_bytes(one: StoredTensor, two: StoredTensor) -> bool:
    """Return whether two tensors are of one kind and shape and hold the same values, to the bit."""
    if (one.kind, one.shape) != (two.kind, two.shape):
        return False
    if (one.path, one.start) == (two.path, two.start):
        return True
    return all(bool((a == b).all()) for a, b in zip(_blocks(one), _blocks(two), strict=True))


def not_finite(tensors: Mapping[str, StoredTensor], stop: Event | None = None) -> list[str]:
    """Return the names of the tensors that hold NaN or infinity; every byte of floating-point tensors is read.

    Args:
        tensors: by name.
        stop: when it is set, the search ends with what is known so far.
    """
    order = sorted(tensors, key=lambda name: (str(tensors[name].path), tensors[name].start))
    return [name for name in order if tensors[name].kind in _INFINITY and _holds_infinity(tensors[name], stop)]


def _holds_infinity(tensor: StoredTensor, stop: Event | None) -> bool:
    unsigned, infinity = _INFINITY[tensor.kind]
    for block in _blocks(tensor):
        if stop is not None and stop.is_set():
            return False
        # All bits of the exponent are set in NaN and infinity alone. NumPy uses one thread, beside the copying.
        if int((block.view(unsigned) & infinity).max()) == infinity:
            return True
    return False


def _blocks(tensor: StoredTensor) -> Iterator[NDArray[np.uint8]]:
    """Yield the tensor's bytes, (n,) uint8 with n at most `_BLOCK`; the next block takes the place of the last."""
    data = np.empty(min(_BLOCK, tensor.size), dtype=np.uint8)
    with tensor.path.open("rb", buffering=0) as file:
        file.seek(tensor.start)
        for done in range(0, tensor.size, _BLOCK):
            size = min(_BLOCK, tensor.size - done)
            if file.readinto(data.data[:size]) != size:
                raise ModelError(f"{tensor.path} ends early: it changed while it was read")
            yield data[:size]
