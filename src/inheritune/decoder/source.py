"""What a user calls MODEL: where it lies, and what it is wherever it lies."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inheritune.checkpoints.folder import read_folder
from inheritune.checkpoints.hub import HUB_ID, Repository, cached_repository, hub_can_answer, open_repository
from inheritune.checkpoints.stored import StoredTensor, read_object
from inheritune.errors import ModelError, OutputError, nearest
from inheritune.records.base import read_record
from inheritune.records.runs import RunRecord
from inheritune.storage import IDENTITY, RECORD

BUNDLED = "stdlib"
"""The name of the reference model that the package ships."""

CONFIG = "config.json"

_LABELS = ("_name_or_path", "transformers_version")
"""What a configuration says that does not change the model."""

_SAMPLE = 64
"""Bytes of each weight that an identity depends on."""

_EXPECTED = "expected a model folder, the folder of a finished run, a hub id, or stdlib"


@dataclass(frozen=True)
class Place:
    """Where a model or a tokenizer is.

    Attributes:
        name: what the user calls it.
        folder: its files; of a model on the hub, those that are in the cache so far.
        repository: the model on the hub; None for a folder.
    """

    name: str
    folder: Path
    repository: Repository | None = None

    @property
    def address(self) -> str:
        """The folder or the hub id, as transformers wants it."""
        return str(self.folder) if self.repository is None else self.repository.name

    def file(self, name: str) -> str:
        """Return what to call one of its files in a message."""
        return str(self.folder / name) if self.repository is None else f"{name} of {self.name}"

    def arguments(self, trust_remote_code: bool) -> dict[str, Any]:
        """Return the arguments with which `from_pretrained` reads this commit and asks the hub only if need be."""
        # A folder needs the hub only where its code is in another repository.
        online = (trust_remote_code or self.repository is not None) and hub_can_answer()
        arguments = {"trust_remote_code": trust_remote_code, "local_files_only": not online}
        return arguments if self.repository is None else arguments | {"revision": self.repository.commit}


def resolve_model(source: str | Path) -> str:
    """Return the folder or hub id that `source` stands for.

    `stdlib` is the model that the package ships, a finished run its result; everything else is itself.

    Raises:
        ModelError: `source` is a folder that another command wrote, which holds no model of its own.
        OutputError: the record of a run is damaged.
    """
    if str(source) == BUNDLED and not Path(source).exists():
        return str(Path(__file__).resolve().parents[1] / "assets" / "reference")
    folder = Path(source).expanduser()
    if not folder.is_dir():
        return str(source)
    return str(folder if (folder / CONFIG).exists() else _model_of(folder))


def locate(source: str | Path, revision: str | None = None) -> Place:
    """Find a model before any library is asked; of one on the hub, config.json alone is downloaded.

    Args:
        source: what a user calls MODEL.
        revision: a branch, tag or commit of a model on the hub; None for its main branch.

    Raises:
        ModelError: there is no such model; or it is a folder, of which there is no `revision`.
    """
    folder = locate_folder(source, revision)
    if folder is not None:
        return Place(str(source), folder)
    repository = open_repository(str(source), revision)
    return Place(str(source), repository.folder, repository)


def locate_folder(source: str | Path, revision: str | None = None) -> Path | None:
    """Return the folder that `source` stands for, or None where it is, by its form, a hub id.

    Raises:
        ModelError: as `locate`.
    """
    path = Path(resolve_model(source))
    if path.is_dir():
        if not any(path.iterdir()):
            raise ModelError(f"the folder {source} is empty: expected a model in Hugging Face format (config.json ...)")
        if revision is not None:
            raise ModelError(f"{source} is a folder: a revision ({revision}) is for models on the hub")
        return path
    path = Path(source).expanduser()
    if path.exists():
        raise ModelError(f"{source} is a file: {_EXPECTED}")
    if isinstance(source, Path) or not HUB_ID.match(str(source)) or (path.parent.is_dir() and "/" in str(source)):
        siblings = [str(path.parent / p.name) for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ModelError(f"no folder {source}: {_EXPECTED}{nearest(str(path), [*siblings, BUNDLED])}")
    return None


def _model_of(folder: Path) -> Path:
    """Return the result of a finished run; refuse other folders that inheritune wrote; else return `folder`."""
    if (folder / RECORD).is_file():
        kind = read_object(folder / RECORD).get("kind")
        if kind != RunRecord.KIND:
            raise _no_model(folder, f"a folder of {kind!r}")
        model = read_record(folder / RECORD, RunRecord).result.model
        if model is None or not (folder / model).is_dir():
            raise _no_model(folder, "a run whose result is gone")
        return folder / model
    kinds = {
        "round.json": "a round of a run",
        "spectra.json": "an analysis",
        "manifest.json": "a folder of token shards",
    }
    for name, what in kinds.items():
        if (folder / name).is_file():
            raise _no_model(folder, what)
    if (folder / IDENTITY).is_file():
        raise _no_model(folder, f"an unfinished {read_object(folder / IDENTITY).get('kind') or 'piece of work'}")
    return folder


def _no_model(folder: Path, what: str) -> ModelError:
    """Return the line for a folder without a model of its own, with the last model below it, if there is one."""
    analysed = read_object(folder / "spectra.json").get("model") if what == "an analysis" else None
    below = sorted(path.parent for pattern in ("*", "*/*", "*/*/*") for path in folder.glob(f"{pattern}/{CONFIG}"))
    choice = analysed or (below[-1] if below else None)
    return ModelError(f"{folder} is {what}, not a model: " + (f"pass {choice}" if choice else _EXPECTED))


def model_identity(source: str | Path) -> str | None:
    """Return what a model is, wherever it lies: a digest of its configuration and its weights.

    Of the weights it takes names, types, shapes and 64 bytes of each, so that models of tens of gigabytes cost little
    more than small ones.

    Args:
        source: what a user calls MODEL.

    Returns:
        16 hexadecimal digits for a folder; NAME@COMMIT for a model in the hub's cache; None for what is neither, or
        cannot be read.
    """
    try:
        folder = locate_folder(source)
        if folder is None:
            cached = cached_repository(str(source))
            return None if cached is None else f"{cached.name}@{cached.commit}"
        config, tensors = read_object(folder / CONFIG), read_folder(folder)
        held = [[name, one.kind, one.shape, _sample(one)] for name, one in sorted(tensors.items())]
    except (ModelError, OutputError, OSError):
        return None
    said = {key: value for key, value in config.items() if key not in _LABELS}
    return hashlib.sha256(json.dumps([said, held], sort_keys=True).encode()).hexdigest()[:16]


def _sample(tensor: StoredTensor) -> str:
    """Return bytes from the middle of a weight, in hexadecimal digits."""
    with tensor.path.open("rb", buffering=0) as file:
        file.seek(tensor.start + tensor.size // 2)
        return file.read(min(_SAMPLE, tensor.size - tensor.size // 2)).hex()
