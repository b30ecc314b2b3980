"""The weights of a checkpoint folder: its index, its shards, and all tensors by name."""

from collections.abc import Collection
from pathlib import Path

from inheritune.checkpoints.stored import StoredTensor, read_object, read_pickle, read_safetensors, refuse_pointer
from inheritune.errors import ModelError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = "pytorch_model.bin"
PICKLED_INDEX = "pytorch_model.bin.index.json"
WEIGHTS = (SINGLE, INDEX, PICKLED, PICKLED_INDEX)
"""Where weights are looked for, in the order in which `from_pretrained` does."""


def checkpoint_bytes(folder: Path) -> int:
    """Return the bytes of the weights in `folder`; 0 if there are none that can be listed."""
    try:
        place = weight_file(folder)
        names = set(read_index(place).values()) if place.suffix == ".json" else {place.name}
        return sum((folder / name).stat().st_size for name in names)
    except (ModelError, OSError):
        return 0


def weight_file(folder: Path) -> Path:
    """Return the one file that holds all weights in `folder`, or the index that says which file holds which.

    Raises:
        ModelError: there is neither.
    """
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    kinds = sorted({path.suffix for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".gguf")})
    held = f"only {', '.join(kinds)} files" if kinds else "no weights"
    if kinds == [".gguf"]:
        raise ModelError(f"{folder} holds a config.json and GGUF files: pass {min(folder.glob('*.gguf'))} itself")
    raise ModelError(f"{folder} holds {held}: expected {SINGLE} or {INDEX}, or {PICKLED} or {PICKLED_INDEX}")


def tensor_names(folder: Path) -> list[str]:
    """Return the names of all tensors of the checkpoint in `folder`, from its index if there is one.

    Raises:
        ModelError: there are no weights, or the file that has to say it is damaged.
    """
    place = weight_file(folder)
    return list(read_index(place) if place.suffix == ".json" else read_file(place))


def read_folder(
    folder: Path, names: Collection[str] | None = None, scratch: Path | None = None
) -> dict[str, StoredTensor]:
    """Return tensors of the checkpoint in `folder` by name, from the headers of the files that hold them.

    Files that hold none of the `names` that are wanted (None for all) are not looked at. See `read_file` for `scratch`.

    Raises:
        ModelError: there are no weights, a file is missing or damaged, or the index is wrong.
    """
    place = weight_file(folder)
    if place.suffix != ".json":
        return {key: tensor for key, tensor in read_file(place, scratch).items() if names is None or key in names}
    wanted = {key: name for key, name in read_index(place).items() if names is None or key in names}
    files = {}
    for name in sorted(set(wanted.values())):
        if not (folder / name).is_file():
            raise ModelError(f"the shard {folder / name} is missing: {place.name} names it")
        files[name] = read_file(folder / name, scratch)
    for key, name in wanted.items():
        if key not in files[name]:
            raise ModelError(f"{place} puts {key!r} in {name}, which does not hold it")
    return {key: files[name][key] for key, name in wanted.items()}


def read_index(path: Path) -> dict[str, str]:
    """Return which file of the folder holds each tensor.

    Raises:
        ModelError: the index cannot be read, or names a file elsewhere.
    """
    named = read_object(path).get("weight_map")
    if not named or not isinstance(named, dict):
        raise ModelError(f"{path} names no weights: expected a JSON object with a weight_map")
    for name in named.values():
        if not isinstance(name, str) or Path(name).name != name:
            raise ModelError(f"{path} names the file {name!r}: expected names of files beside it")
    return named


def read_file(path: Path, scratch: Path | None = None) -> dict[str, StoredTensor]:
    """Return the tensors of one file by name, and confirm that it is whole; see `read_pickle` for `scratch`.

    Raises:
        ModelError: the file is cut short, damaged, or neither; or it is a git-lfs pointer.
    """
    refuse_pointer(path)
    return read_pickle(path, scratch) if path.suffix == ".bin" else read_safetensors(path)
