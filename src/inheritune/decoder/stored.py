"""The tensors of a checkpoint's safetensors files: where they lie, and reading them one at a time.

The format is an 8-byte header length, a JSON header with each tensor's type, shape and byte range, then the bytes
(https://huggingface.co/docs/safetensors). Tensors are read with plain file reads, not by mapping the files: mapped
pages count as the process's memory as long as the mapping lives, and a private mapping of a whole shard counts against
a limit on data.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inheritune.errors import ModelError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
IN_MEMORY = "load it whole (stream=False)"
"""The way out that messages name."""

_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


class StreamError(ModelError):
    """The checkpoint is sound as far as is known, but cannot be read block by block; in memory it may work."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file; indexing it reads it.

    Attributes:
        path: the file.
        dtype: its type.
        shape: its dimensions.
        start: the offset of its first byte in the file.
        size: its number of bytes.
    """

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    size: int

    def __getitem__(self, index: Any) -> Tensor:
        """Read the whole tensor and return the part `index` of it (`...` for all), in the type it is stored in."""
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


def checkpoint_bytes(folder: Path) -> int:
    """Return the bytes of the safetensors weights in `folder`; 0 if there are none that can be listed."""
    try:
        return sum(path.stat().st_size for path in _files(folder))
    except (ModelError, OSError):
        return 0


def read_folder(folder: Path) -> dict[str, StoredTensor]:
    """Return all tensors of the checkpoint in `folder`, by name, from the headers of its files.

    Raises:
        ModelError: a file is missing or damaged, or the index is wrong.
    """
    stored: dict[str, StoredTensor] = {}
    for path in _files(folder):
        stored |= _read_header(path)
    index = folder / INDEX
    if not (folder / SINGLE).is_file():
        named = _weight_map(index)
        lost = next((key for key in named if key not in stored), None)
        if lost is not None:
            raise ModelError(f"{index} puts {lost!r} in {named[lost]}, which does not hold it")
        stored = {key: stored[key] for key in named}
    return stored


def _files(folder: Path) -> list[Path]:
    """Return the files that hold the weights in `folder`: one, or those that the index names."""
    if (folder / SINGLE).is_file():  # as from_pretrained, which looks for it first
        return [folder / SINGLE]
    return [folder / name for name in sorted(set(_weight_map(folder / INDEX).values()))]


def _weight_map(path: Path) -> dict[str, str]:
    try:
        return {str(key): str(name) for key, name in json.loads(path.read_text("utf-8"))["weight_map"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"cannot read {path}: expected a JSON object with a weight_map") from error


def _read_header(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of one file from its header (https://huggingface.co/docs/safetensors), and check its size.

    Raises:
        ModelError: the file is missing, cut short or not a safetensors file.
    """
    if not path.is_file():
        raise ModelError(f"the shard {path} is missing: {INDEX} names it")
    try:
        total = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, total)))
        header.pop("__metadata__", None)
        tensors = {key: _stored(path, entry, 8 + length) for key, entry in header.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} is damaged or not a safetensors file") from error
    end = max((tensor.start + tensor.size for tensor in tensors.values()), default=8 + length)
    if end != total:
        raise ModelError(f"{path} is damaged: it has {total} bytes, its header speaks of {end}")
    return tensors


def _stored(path: Path, entry: dict[str, Any], data: int) -> StoredTensor:
    import torch

    if entry["dtype"] not in _DTYPES:
        raise StreamError(f"{path} holds tensors of type {entry['dtype']}, which are not read by layer: {IN_MEMORY}")
    dtype = getattr(torch, _DTYPES[entry["dtype"]])
    start, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if end - start != math.prod(shape) * dtype.itemsize:
        raise ValueError
    return StoredTensor(path, dtype, shape, data + start, end - start)
