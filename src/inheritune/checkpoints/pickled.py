"""PyTorch's own checkpoint files (`pytorch_model.bin`), read without running what a pickle may hold.

Since PyTorch 1.6 such a file is an uncompressed zip archive with one entry per storage, so a tensor's bytes lie plainly
in it and can be copied like those of a safetensors file. `torch.load` onto the meta device says where, and reads no
data. Where they do not lie so (older files, transposed tensors, a PyTorch that does not say), the file is written again
as safetensors, in memory as a whole, and that copy is read instead.
"""

from __future__ import annotations

import pickle
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inheritune.checkpoints.stored import TYPES, StoredTensor, read_safetensors
from inheritune.errors import ModelError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def read_pickle(path: Path, scratch: Path | None = None) -> dict[str, StoredTensor]:
    """Return the tensors of a PyTorch file by name; tensors that share memory there share their bytes here.

    Args:
        path: the file.
        scratch: a folder for the copy of a file in which the bytes do not lie plainly. None if only names are asked:
            the places then mean nothing for such a file.

    Raises:
        ModelError: the file is damaged, or holds something else than tensors.
    """
    tensors = _load(path, "meta")
    if scratch is None or _lies_plainly(path, tensors):
        return {key: _stored(path, key, tensor) for key, tensor in tensors.items()}
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

    return {getattr(torch, name): kind for kind, name in TYPES.items() if hasattr(torch, name)}


def _offset(tensor: Tensor) -> int | None:
    """Return where the tensor's storage begins in the file; PyTorch before 2.7 does not say."""
    return getattr(tensor.untyped_storage(), "_checkpoint_offset", None) if _strided(tensor) else None


def _strided(tensor: Tensor) -> bool:
    """Return whether a tensor has one storage of its values; sparse ones have several."""
    return str(tensor.layout) == "torch.strided"


def _lies_plainly(path: Path, tensors: dict[str, Tensor]) -> bool:
    return _same_byte_order(path) and all(
        _offset(tensor) is not None and tensor.is_contiguous() for tensor in tensors.values()
    )


def _same_byte_order(path: Path) -> bool:
    """Return whether the file's numbers are little-endian, as safetensors' are; old archives say nothing and are."""
    if not zipfile.is_zipfile(path) or sys.byteorder != "little":
        return False
    with zipfile.ZipFile(path) as archive:
        stated = [archive.read(name) for name in archive.namelist() if name.endswith("/byteorder")]
    return stated in ([], [b"little"])


def _stored(path: Path, key: str, tensor: Tensor) -> StoredTensor:
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
