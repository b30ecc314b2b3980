"""Write safetensors files by copying bytes out of other files.

Copying byte ranges takes no memory to speak of whatever the size of a tensor or a shard, and cannot change a bit,
whatever the type; `safetensors.torch.save_file` would hold a shard. Plain reads and writes of whole pages are about as
fast as `cp` (benchmarks/surgery.py); the system's own copy between files (copy_file_range), which `cp` uses, and a
second thread were tried and were no faster.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

from inheritune.decoder.stored import StoredTensor
from inheritune.errors import ModelError

_BLOCK = 256 << 10
"""Bytes copied at once: what stays in the processor's cache is copied fastest."""


def write_file(path: Path, tensors: Mapping[str, StoredTensor], done: Callable[[int], object] | None = None) -> None:
    """Write a safetensors file whose tensor `name` is a copy of `tensors[name]`.

    Args:
        path: the new file.
        tensors: what to copy, by the names in the new file.
        done: called with the number of bytes after every few that were copied.

    Raises:
        ModelError: a source file ends early or cannot be read.
        OSError: the file cannot be written.
    """
    # Widest types first, as safetensors does, so that every tensor is aligned for its type; then as they lie in the
    # source, so that neighbours are copied in one go.
    order = sorted(
        tensors, key=lambda name: (-_width(tensors[name]), str(tensors[name].path), tensors[name].start, name)
    )
    with path.open("wb", buffering=0) as file:
        _write_all(file, memoryview(_header({name: tensors[name] for name in order})))
        for source, start, size in _merged(tensors[name] for name in order):
            _copy(source, start, size, file, done or (lambda count: None))


def _header(tensors: Mapping[str, StoredTensor]) -> bytes:
    """Return the bytes in front of the tensors, which follow in the order given."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": tensor.kind,
            "shape": list(tensor.shape),
            "data_offsets": [end, end + tensor.size],
        }
        end += tensor.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _width(tensor: StoredTensor) -> float:
    """Return the number of bytes of one element; infinity if there is none, so that empty tensors come first."""
    count = math.prod(tensor.shape)
    return tensor.size / count if count else math.inf


def _merged(tensors: Iterable[StoredTensor]) -> Iterator[tuple[Path, int, int]]:
    """Yield (file, start, size) of the ranges that hold these tensors, neighbours as one range."""
    path, start, size = Path(), 0, 0
    for tensor in tensors:
        if (tensor.path, tensor.start) == (path, start + size):
            size += tensor.size
            continue
        if size:
            yield path, start, size
        path, start, size = tensor.path, tensor.start, tensor.size
    if size:
        yield path, start, size


def _copy(path: Path, start: int, size: int, target: FileIO, done: Callable[[int], object]) -> None:
    """Copy `size` bytes from offset `start` of a file to the end of the open one."""
    try:
        source = path.open("rb", buffering=0)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error
    buffer, place = memoryview(bytearray(_BLOCK)), target.tell()
    with source:
        source.seek(start)
        end = place + size
        while place < end:
            # Up to the next multiple of a block, so that the system always gets whole pages to write.
            count = source.readinto(buffer[: min(_BLOCK - place % _BLOCK, end - place)])
            if not count:
                raise ModelError(f"{path} ends early: it changed while it was read")
            _write_all(target, buffer[:count])
            place += count
            done(count)


def _write_all(file: FileIO, data: memoryview) -> None:
    while data:
        data = data[file.write(data) :]
