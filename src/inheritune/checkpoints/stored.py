"""The tensors of a checkpoint's files: which there are, where their bytes lie, and reading them one at a time.

A safetensors file is an 8-byte header length, a JSON header with each tensor's type, shape and byte range, then the
bytes (https://huggingface.co/docs/safetensors). Tensors are read with plain file reads, not by mapping the files:
mapped pages count as the process's memory as long as the mapping lives, and a private mapping of a whole shard counts
against a limit on data.
"""

from __future__ import annotations

import json
import math
import pickle
import re
import sys
import zipfile
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
        end = 8 + length  # the tensors fill the rest of the file, none over another
        for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.start, tensor.size)):
            if tensor.start != end:
                raise ValueError(f"{tensor.key!r} begins at byte {tensor.start}, expected {end}")
            end += tensor.size
        if end != total:
            raise ValueError(f"it has {total} bytes, its header speaks of {end}")
    return tensors


def _stored(path: Path, key: str, entry: dict[str, Any], data: int) -> StoredTensor:
    kind, shape = str(entry["dtype"]), tuple(entry["shape"])
    start, end = entry["data_offsets"]
    if 8 * (end - start) != math.prod(shape) * bits(kind):
        raise ValueError(f"{key!r} has {end - start} bytes, which is not {list(shape)} of {kind}")
    return StoredTensor(path, key, kind, shape, data + start, end - start)


def bits(kind: str) -> int:
    """Return the number of bits of one element of any type, which its name says: 4 of `F4`, 8 of `F8_E8M0`."""
    named = re.fullmatch(r"(?:BF|C|F|I|U)(\d+)(?:_E\d+M\d+[A-Z]*)?", kind)
    if named is None and kind != "BOOL":
        raise ValueError(f"{kind!r} is no type of tensors")
    return int(named[1]) if named else 8


def read_pickle(path: Path, scratch: Path | None = None) -> dict[str, StoredTensor]:
    """Return the tensors of a PyTorch file by name; tensors that share memory there share their bytes here.

    `scratch` is a folder for the copy of a file in which the bytes do not lie plainly. None if only names are asked:
    the places then mean nothing for such a file.

    Raises:
        ModelError: the file is damaged, or holds something else than tensors.
    """
    tensors = _load(path, "meta")
    if scratch is None or _lies_plainly(path, tensors):
        return {key: _of_pickle(path, key, tensor) for key, tensor in tensors.items()}
    return _convert(path, scratch / f"{path.stem}.safetensors")


def _load(path: Path, device: str) -> dict[str, Tensor]:
    import torch

    try:
        loaded = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path} is a pickle that holds more than tensors, or no pickle at all, and reading it could run code: "
            "expected safetensors, or a file that torch.load(weights_only=True) reads; convert it where you trust it"
        ) from error
    except MemoryError:
        raise
    except Exception as error:
        raise ModelError(f"{path} is damaged or not a PyTorch file") from error
    if not isinstance(loaded, dict):
        raise ModelError(f"{path} holds a {type(loaded).__name__}: expected tensors by name")
    for key, value in loaded.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor) or value.dtype not in _kinds():
            kind = value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
            raise ModelError(f"{path} holds {key!r} of type {kind}: expected tensors by name")
    return loaded


def _kinds() -> dict[torch.dtype, str]:
    import torch

    return {getattr(torch, name): kind for kind, name in TYPES.items()}


def _offset(tensor: Tensor) -> int | None:
    """Return where the tensor's storage begins in the file, if it has one."""
    return tensor.untyped_storage()._checkpoint_offset if _strided(tensor) else None


def _strided(tensor: Tensor) -> bool:
    """Return whether a tensor has one storage of its values; sparse ones have several."""
    return str(tensor.layout) == "torch.strided"


def _lies_plainly(path: Path, tensors: dict[str, Tensor]) -> bool:
    """Return whether the bytes in the file are those that a safetensors file would hold."""
    if not zipfile.is_zipfile(path) or sys.byteorder != "little":
        return False
    with zipfile.ZipFile(path) as archive:
        stated = [archive.read(name) for name in archive.namelist() if name.endswith("/byteorder")]
    plain = all(_offset(tensor) is not None and tensor.is_contiguous() for tensor in tensors.values())
    return plain and stated in ([], [b"little"])  # old archives say nothing and are little-endian


def _of_pickle(path: Path, key: str, tensor: Tensor) -> StoredTensor:
    offset = _offset(tensor)
    start = 0 if offset is None else offset + tensor.storage_offset() * tensor.itemsize
    return StoredTensor(path, key, _kinds()[tensor.dtype], tuple(tensor.shape), start, tensor.numel() * tensor.itemsize)


def _convert(path: Path, copy: Path) -> dict[str, StoredTensor]:
    """Write the file again as safetensors, each shared tensor once, and return the tensors of that copy."""
    import torch
    from safetensors.torch import save_file

    tensors = _load(path, "cpu")
    first: dict[Any, str] = {}
    names = {
        key: first.setdefault(
            (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if _strided(tensor) else key, key
        )
        for key, tensor in tensors.items()
    }
    kept = set(names.values())
    save_file(
        {
            key: tensors.pop(key).to_dense().clone(memory_format=torch.contiguous_format)
            for key in [*tensors]
            if key in kept
        },
        copy,
    )
    stored = read_safetensors(copy)
    return {key: stored[name] for key, name in names.items()}
