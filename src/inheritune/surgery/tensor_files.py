"""Read where tensors lie in safetensors files, and write new files by copying their bytes.

The format is an 8-byte header length, a JSON header with each tensor's type, shape and byte range, then the bytes
(https://huggingface.co/docs/safetensors). Copying byte ranges needs a few megabytes of memory whatever the size of a
tensor or a shard, and cannot change a bit, whatever the type; `safetensors.torch.save_file` would hold a shard.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from inheritune.errors import ModelError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_CHUNK = 8 << 20


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file.

    Attributes:
        path: the file.
        key: its name there.
        dtype: its type in safetensors' spelling, for example `BF16`.
        shape: its dimensions.
        start: the offset of its first byte in the file.
        size: its number of bytes.
    """

    path: Path
    key: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


def read_folder(folder: Path) -> dict[str, StoredTensor]:
    """Return all tensors of the checkpoint in `folder`, by name, from its index and the headers of its shards.

    Raises:
        ModelError: there are no safetensors weights, a shard is missing or damaged, or the index is wrong.
    """
    if not (folder / INDEX).is_file():
        if (folder / SINGLE).is_file():
            return read_file(folder / SINGLE)
        kinds = sorted({path.suffix for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".gguf")})
        found = f"only {', '.join(kinds)} files" if kinds else "no weights"
        raise ModelError(f"{folder} holds {found}: expected {SINGLE} or {INDEX}")
    weight_map = _read_index(folder / INDEX)
    shards = {name: read_file(folder / name, INDEX) for name in sorted(set(weight_map.values()))}
    for key, name in weight_map.items():
        if key not in shards[name]:
            raise ModelError(f"{folder / INDEX} puts {key!r} in {name}, which does not hold it")
    return {key: shards[name][key] for key, name in weight_map.items()}


def read_file(path: Path, named_by: str = "") -> dict[str, StoredTensor]:
    """Return the tensors of one file by name, from its header; safetensors itself checks that the file is whole.

    Raises:
        ModelError: the file is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ModelError(f"the shard {path} is missing" + (f": {named_by} names it" if named_by else ""))
    try:
        with safe_open(str(path), framework="pt"):
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header: dict[str, Any] = json.loads(file.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path} is damaged or not a safetensors file: {str(error).splitlines()[0]}") from error
    header.pop("__metadata__", None)
    return {key: _stored(path, key, entry, 8 + length) for key, entry in header.items()}


def write_file(path: Path, tensors: Mapping[str, StoredTensor], done: Callable[[], None] = lambda: None) -> None:
    """Write a safetensors file whose tensor `name` is a copy of `tensors[name]`; `done()` is called after each.

    Raises:
        ModelError: a source file ends early.
        OSError: the file cannot be written.
    """
    # Widest types first, as safetensors does, so that every tensor is aligned for its type.
    order = sorted(tensors, key=lambda name: (-_width(tensors[name]), name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        tensor = tensors[name]
        header[name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [end, end + tensor.size],
        }
        end += tensor.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            _copy_bytes(tensors[name], file)
            done()


def _read_index(path: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        return {str(key): str(name) for key, name in weight_map.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"cannot read {path}: expected a JSON object with a weight_map") from error


def _stored(path: Path, key: str, entry: dict[str, Any], data: int) -> StoredTensor:
    start, end = entry["data_offsets"]
    return StoredTensor(path, key, entry["dtype"], tuple(entry["shape"]), data + start, end - start)


def _width(tensor: StoredTensor) -> float:
    """Return the number of bytes of one element; infinity if there is none, so that empty tensors come first."""
    count = math.prod(tensor.shape)
    return tensor.size / count if count else math.inf


def _copy_bytes(tensor: StoredTensor, target: IO[bytes]) -> None:
    with tensor.path.open("rb") as source:
        source.seek(tensor.start)
        left = tensor.size
        while left:
            chunk = source.read(min(left, _CHUNK))
            if not chunk:
                raise ModelError(f"{tensor.path} ends within {tensor.key!r}: it changed while it was read")
            target.write(chunk)
            left -= len(chunk)
