"""The tensors of a checkpoint's files: which there are, where their bytes lie, and reading them one at a time.

A safetensors file is an 8-byte header length, a JSON header with each tensor's type, shape and byte range, then the
bytes (https://huggingface.co/docs/safetensors). Tensors are read with plain file reads, not by mapping the files:
mapped pages count as the process's memory as long as the mapping lives, and a private mapping of a whole shard counts
against a limit on data.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inheritune.errors import ModelError, library_errors, reason

if TYPE_CHECKING:
    import torch
    from torch import Tensor


IN_MEMORY = "load it whole (stream=False)"
"""The way out that messages name."""

TYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "C64": "complex64",
}  # fmt: skip
"""PyTorch's name of each type that the format spells so."""

_POINTER = b"version https://git-lfs"
_PLAIN = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL")
_LONGEST_HEADER = 100_000_000
"""Bytes; safetensors' own limit."""


class StreamError(ModelError):
    """The checkpoint is sound as far as is known, but cannot be read block by block; in memory it may work."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file of a checkpoint; indexing it reads it.

    Attributes:
        path: the file.
        key: its name there.
        kind: its type in safetensors' spelling, for example `BF16`.
        shape: its dimensions.
        start: the offset of its first byte in the file.
        size: its number of bytes, which lie one behind the other, the last dimension varying fastest.
    """

    path: Path
    key: str
    kind: str
    shape: tuple[int, ...]
    start: int
    size: int

    @property
    def dtype(self) -> torch.dtype:
        """Its type.

        Raises:
            StreamError: models do not compute in it.
        """
        import torch

        if self.kind not in _PLAIN:
            raise StreamError(
                f"{self.path} holds tensors of type {self.kind}, which are not read by layer: {IN_MEMORY}"
            )
        return getattr(torch, TYPES[self.kind])

    def __getitem__(self, index: Any) -> Tensor:
        """Read the whole tensor (of `shape` and `dtype`) and return the part `index` of it; `...` for all."""
        import torch

        data = torch.empty(self.size, dtype=torch.uint8)
        view, done = memoryview(data.numpy()), 0
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.start)
            while done < self.size:  # one read gives at most 2 GiB
                count = file.readinto(view[done:])
                if not count:
                    raise ModelError(f"{self.path} ends early: it changed while it was read")
                done += count
        return data.view(self.dtype).view(self.shape)[index]


def refuse_pointer(path: Path) -> None:
    """Refuse the few lines that git leaves in place of a large file which `git lfs` has not fetched.

    Raises:
        ModelError: `path` holds such lines. What cannot be read at all is left to who reads it.
    """
    with suppress(OSError), path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise ModelError(f"{path} is a git-lfs pointer, not the file itself: run git lfs pull in {path.parent}")


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file of a model's folder.

    Raises:
        ModelError: it is missing, cannot be read, is not JSON, or holds something else than an object.
    """
    refuse_pointer(path)
    try:
        held = json.loads(path.read_text("utf-8"), parse_constant=_constant)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is damaged or not JSON: {reason(error)}") from error
    if not isinstance(held, dict):
        raise ModelError(f"{path} holds a JSON {type(held).__name__}: expected an object")
    return held


def _constant(name: str) -> float:
    """Return the infinity that Python's JSON may spell (Mamba's time limits are infinite); NaN says nothing."""
    if name == "NaN":
        raise ValueError("it holds NaN, expected a number")
    return float(name)


def read_safetensors(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of one safetensors file by name, and confirm that it is whole.

    Raises:
        ModelError: the file is cut short, damaged or of another format.
    """
    with library_errors(f"{path} is damaged or not a safetensors file"):
        total = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length) if length <= _LONGEST_HEADER else b"")
        if not isinstance(header.pop("__metadata__", {}), dict):
            raise ValueError("its metadata is no object")
        tensors = {str(key): _stored(path, key, entry, 8 + length) for key, entry in header.items()}
        _check_whole(tensors.values(), 8 + length, total)
    return tensors


def _stored(path: Path, key: str, entry: dict[str, Any], data: int) -> StoredTensor:
    kind, shape = str(entry["dtype"]), tuple(entry["shape"])
    start, end = entry["data_offsets"]
    if 8 * (end - start) != math.prod(shape) * bits(kind):
        raise ValueError(f"{key!r} has {end - start} bytes, which is not {list(shape)} of {kind}")
    return StoredTensor(path, key, kind, shape, data + start, end - start)


def _check_whole(tensors: Collection[StoredTensor], start: int, total: int) -> None:
    """Confirm that the tensors fill the file from `start` to its end, none over another."""
    end = start
    for tensor in sorted(tensors, key=lambda tensor: (tensor.start, tensor.size)):
        if tensor.start != end:
            raise ValueError(f"{tensor.key!r} begins at byte {tensor.start}, expected {end}")
        end += tensor.size
    if end != total:
        raise ValueError(f"it has {total} bytes, its header speaks of {end}")


def bits(kind: str) -> int:
    """Return the number of bits of one element of any type, which its name says: 4 of `F4`, 8 of `F8_E8M0`."""
    named = re.fullmatch(r"(?:BF|C|F|I|U)(\d+)(?:_E\d+M\d+[A-Z]*)?", kind)
    if named is None and kind != "BOOL":
        raise ValueError(f"{kind!r} is no type of tensors")
    return int(named[1]) if named else 8
