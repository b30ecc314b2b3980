"""What a user calls MODEL: where it lies, and what it is wherever it lies."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inheritune.checkpoints import hub
from inheritune.checkpoints.folder import read_folder
from inheritune.checkpoints.stored import StoredTensor, read_object
from inheritune.decoder.gguf import find_gguf, unpack_gguf
from inheritune.errors import ModelError, OutputError, nearest_path
from inheritune.records.base import read_record
from inheritune.records.runs import RunRecord
from inheritune.storage import FRONTIER, IDENTITY, RECORD, user_path

_ASSETS = Path(__file__).resolve().parents[1] / "assets"
BUNDLED = {"stdlib": _ASSETS / "reference", "stdlib-small": _ASSETS / "stdlib-small"}
"""What the package ships, by name: a reference model, and a run that made a smaller one of it."""

CONFIG = "config.json"

_LABELS = ("_name_or_path", "transformers_version")
"""What a configuration says that does not change the model."""

_SAMPLE = 64
"""Bytes of each weight that an identity depends on."""

_OURS = {
    "round.json": "a round of a run",
    FRONTIER: "a frontier",
    "spectra.json": "an analysis",
    "manifest.json": "a folder of token shards",
}
"""What a folder is that has one of these files and no model."""

_EXPECTED = "expected a model folder, the folder of a finished run, a GGUF file, a hub id, stdlib or stdlib-small"


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
    repository: hub.Repository | None = None

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
        online = (trust_remote_code or self.repository is not None) and hub.hub_can_answer()
        arguments = {"trust_remote_code": trust_remote_code, "local_files_only": not online}
        return arguments if self.repository is None else arguments | {"revision": self.repository.commit}


def resolve_model(source: str | Path) -> str:
    """Return the folder or hub id that `source` stands for: as `lasting_place`, a GGUF file unpacked.

    Raises:
        ModelError: as there, or a GGUF file cannot be read.
        OutputError: the record of a run is damaged.
    """
    place = lasting_place(source)
    file = find_gguf(Path(place))
    return place if file is None else str(unpack_gguf(file))


def lasting_place(source: str | Path) -> str:
    """Return the folder, GGUF file or hub id that `source` stands for.

    `stdlib` and `stdlib-small` are what the package ships, a finished run is its result, and a folder with one GGUF
    file and no config.json that file; everything else is itself.

    Raises:
        ModelError: `source` is a folder that another command wrote, which holds no model of its own, or one of several
            GGUF files.
        OutputError: the record of a run is damaged.
    """
    folder = user_path(source, ModelError)
    if not folder.exists():
        folder = BUNDLED.get(str(source), folder)
    if not folder.is_dir():
        return str(folder if folder.is_file() else source)
    place = folder if (folder / CONFIG).exists() else _model_of(folder)
    return str(find_gguf(place) or place)


def locate(source: str | Path, revision: str | None = None, files: Iterable[str] = ()) -> Place:
    """Find what a user calls MODEL, or a tokenizer, before any library is asked.

    For one on the hub, `revision` and `files` are those of `open_repository`.

    Raises:
        ModelError: there is no such model; or it is a folder, of which there is no `revision`.
    """
    name, path = str(source), Path(resolve_model(source))
    if path.is_dir():
        if revision is not None:
            raise ModelError(f"{source} is a folder: a revision ({revision}) is for models on the hub")
        return Place(name, path)
    path = path.expanduser()
    if path.exists():
        raise ModelError(f"{source} is a file: {_EXPECTED}")
    if isinstance(source, Path) or not hub.HUB_ID.match(name) or (path.parent.is_dir() and "/" in name):
        raise ModelError(f"no folder {source}: {_EXPECTED}{nearest_path(path, *BUNDLED)}")
    repository = hub.open_repository(name, revision, files)
    return Place(name, repository.folder, repository)


def _model_of(folder: Path) -> Path:
    """Return the result of a finished run; refuse other folders that inheritune wrote; else return `folder`."""
    what = next((what for name, what in _OURS.items() if (folder / name).is_file()), None)
    if (folder / RECORD).is_file():
        kind = read_object(folder / RECORD).get("kind")
        what = f"a folder of {kind!r}"
        if kind == RunRecord.KIND:
            model = read_record(folder / RECORD, RunRecord).result.model
            if model is not None and (folder / model).is_dir():
                return folder / model
            what = "a run whose result is gone"
    elif what is None and (folder / IDENTITY).is_file():
        what = f"an unfinished {read_object(folder / IDENTITY).get('kind') or 'piece of work'}"
    if what is None:
        return folder
    analysed = read_object(folder / "spectra.json").get("model") if what == "an analysis" else None
    below = sorted(path.parent for pattern in ("*", "*/*", "*/*/*") for path in folder.glob(f"{pattern}/{CONFIG}"))
    choice = analysed or (below[-1] if below else None)
    raise ModelError(f"{folder} is {what}, not a model: " + (f"pass {choice}" if choice else _EXPECTED))


def model_identity(source: str | Path) -> str | None:
    """Return what a model is, wherever it lies: a digest of its configuration and its weights.

    Of the weights it takes names, types, shapes and 64 bytes of each, so that models of tens of gigabytes cost little
    more than small ones. It is 16 hexadecimal digits for a folder; NAME@COMMIT for a model in the hub's cache; None for
    what is neither, or cannot be read.
    """
    try:
        folder = Path(resolve_model(source))
        if not folder.is_dir():
            cached = hub.cached_repository(str(source))
            return None if cached is None else f"{cached.name}@{cached.commit}"
        config, tensors = read_object(folder / CONFIG), read_folder(folder)
        held = [[name, one.kind, one.shape, _sample(one)] for name, one in sorted(tensors.items())]
    except (ModelError, OutputError, OSError, ValueError):  # ValueError: no name of a model on the hub
        return None
    said = {key: value for key, value in config.items() if key not in _LABELS}
    return hashlib.sha256(json.dumps([said, held], sort_keys=True).encode()).hexdigest()[:16]


def _sample(tensor: StoredTensor) -> str:
    """Return bytes from the middle of a weight, in hexadecimal digits."""
    with tensor.path.open("rb", buffering=0) as file:
        file.seek(tensor.start + tensor.size // 2)
        return file.read(min(_SAMPLE, tensor.size - tensor.size // 2)).hex()
