"""Read and write the bytes of stored tensors in blocks: compare them, look through them, copy them into new files.

Copying byte ranges takes no memory to speak of whatever the size of a tensor or a shard, and cannot change a bit,
whatever the type; `safetensors.torch.save_file` would hold a shard. Where the system copies between files by itself
(copy_file_range on Linux, which `cp` uses too), the bytes do not pass through this process. A second thread was tried
and was slower; so were plain writes, whose speed falls by half and more where free memory is in small pieces. Padding
the header so that most bytes keep their place within pages changed nothing (2 GB, ten pairs: 0.65 s and 0.64 s).
"""

import errno
import json
import os
from collections.abc import Callable, Iterator, Mapping
from io import FileIO
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inheritune.checkpoints.stored import StoredTensor, bits
from inheritune.errors import ModelError
from inheritune.layers import runs

_STEP = 64 << 20
"""Bytes the system copies in one call, whose ends are multiples of it; small enough for a Ctrl-C and progress."""

_BLOCK = 256 << 10
"""Bytes copied at once where they pass through this process; what stays in the processor's cache is copied fastest."""

_NOT_BY_SYSTEM = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)
"""Answers of a system or file system that does not copy between these two files by itself."""


def write_file(path: Path, tensors: Mapping[str, StoredTensor], done: Callable[[int], object] | None = None) -> None:
    """Write a safetensors file whose tensor `name` is a copy of `tensors[name]`.

    `done` is called with the number of bytes after every few that were copied.

    Raises:
        ModelError: a source file ends early or cannot be read.
        OSError: the file cannot be written.
    """
    # Widest types first, as safetensors does, so that every tensor is aligned for its type; then as they lie in the
    # source, so that neighbours are copied in one go. Sources come in the order of their first tensor here: by their
    # paths the file would depend on where they lie.
    place = {path: n for n, path in enumerate(dict.fromkeys(tensor.path for tensor in tensors.values()))}
    order = sorted(tensors, key=lambda n: (-bits(tensors[n].kind), place[tensors[n].path], tensors[n].start, n))
    with path.open("wb", buffering=0) as file:
        _write_all(file, memoryview(_header({name: tensors[name] for name in order})))
        for run in runs((tensors[name] for name in order), _follows):
            size = sum(tensor.size for tensor in run)
            _copy(run[0].path, run[0].start, size, file, done or (lambda count: None))


def _header(tensors: Mapping[str, StoredTensor]) -> bytes:
    """Return the bytes in front of the tensors, which follow in the order given."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": tensor.kind, "shape": list(tensor.shape), "data_offsets": [end, end + tensor.size]}
        end += tensor.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # spaces are nothing in JSON; the tensors begin aligned
    return len(text).to_bytes(8, "little") + text


def _follows(one: StoredTensor, two: StoredTensor) -> bool:
    return (two.path, two.start) == (one.path, one.start + one.size)


def _copy(path: Path, start: int, size: int, target: FileIO, done: Callable[[int], object]) -> None:
    """Copy `size` bytes from offset `start` of a file to where the open one stands."""
    try:
        source = path.open("rb", buffering=0)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error
    with source:
        end = start + size
        while start < end:
            count = _copy_by_system(source, target, start, min(_STEP - start % _STEP, end - start))
            count = count or _copy_block(source, target, start, end - start)
            if not count:
                raise ModelError(f"{path} ends early: it changed while it was read")
            start += count
            done(count)


def _copy_by_system(source: FileIO, target: FileIO, start: int, size: int) -> int:
    """Let the system copy; return how many bytes it did, 0 if it does not do this."""
    if not hasattr(os, "copy_file_range"):
        return 0
    try:
        return os.copy_file_range(source.fileno(), target.fileno(), size, start)
    except OSError as error:
        if error.errno in _NOT_BY_SYSTEM:
            return 0
        raise


def _copy_block(source: FileIO, target: FileIO, start: int, size: int) -> int:
    source.seek(start)
    # Up to the next multiple of a block, so that the system gets whole pages to write.
    data = source.read(min(_BLOCK - target.tell() % _BLOCK, size))
    _write_all(target, memoryview(data))
    return len(data)


def _write_all(file: FileIO, data: memoryview) -> None:
    while data:
        data = data[file.write(data) :]


_INFINITY = {
    "F64": (np.uint64, 0x7FF << 52),
    "F32": (np.uint32, 0x7F800000),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
}
"""For each type with NaN and infinity, whole numbers as wide, and the bits of its exponent."""

_LOOK = 1 << 20
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

    When `stop` is set, the search ends with what is known so far.
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
    """Yield the tensor's bytes, (n,) uint8 with n at most `_LOOK`; the next block takes the place of the last."""
    data = np.empty(min(_LOOK, tensor.size), dtype=np.uint8)
    with tensor.path.open("rb", buffering=0) as file:
        file.seek(tensor.start)
        for done in range(0, tensor.size, _LOOK):
            size = min(_LOOK, tensor.size - done)
            if file.readinto(data.data[:size]) != size:
                raise ModelError(f"{tensor.path} ends early: it changed while it was read")
            yield data[:size]
