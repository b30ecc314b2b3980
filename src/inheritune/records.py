"""What every run writes: settings, seeds, versions, hardware and results, as plain data on disk.

A file is written to a temporary name, flushed to the disk and renamed, so that a reader sees the old file or the new
one and never a part. A folder's `record.json` is written last: a folder without it is unfinished work.
"""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from inheritune.errors import OutputError

RECORD = "record.json"
IDENTITY = "identity.json"
VERSIONED = ("inheritune", "torch", "transformers", "accelerate", "tokenizers", "safetensors", "numpy", "scipy")


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8 so that `path` is never seen half-written.

    Raises:
        OutputError: the folder cannot be created or written, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def write_json(path: Path, data: Any) -> None:
    """Write `data` to `path` as indented JSON, atomically; NaN and infinity are refused (they are not JSON)."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        OutputError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise OutputError(f"no file {path}: expected a record written by inheritune") from error
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot read {path} as JSON: {error}") from error


def claim_folder(path: Path, identity: dict[str, Any], option: str = "--out") -> None:
    """Make `path` the folder of the work described by `identity`, or confirm that it already is.

    `identity.json` inside the folder says what the folder is for. Running the same work again continues it; other
    work is refused, so that nothing is overwritten.

    Args:
        path: the folder.
        identity: what makes the work this one and no other, plain data.
        option: what the command line calls the folder.

    Raises:
        OutputError: the folder holds other work or foreign files, or cannot be written.
    """
    check_folder(path, identity, option)
    if not (path / IDENTITY).is_file():
        write_json(path / IDENTITY, identity)


def check_folder(path: Path, identity: dict[str, Any], option: str = "--out") -> None:
    """Refuse a folder that `claim_folder` would refuse, and write nothing.

    Raises:
        OutputError: the folder holds other work or foreign files, or cannot be written.
    """
    stamp = path / IDENTITY
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not there.is_dir():
        raise OutputError(f"{option} {path}: {there} is a file, expected a folder: pass a new or empty {option} folder")
    if stamp.is_file():
        held = read_json(stamp)
        if held != json.loads(json.dumps(identity)):
            raise OutputError(f"{path} holds another run ({_difference(held, identity)}): pass another {option} folder")
    elif path.exists() and any(path.iterdir()):
        raise OutputError(f"{path} exists and was not made by this command: pass a new or empty {option} folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write into {there}: pass another {option} folder")


def release_folder(path: Path) -> None:
    """Give a claimed folder back if nothing but the claim is in it."""
    if path.is_dir() and [item.name for item in path.iterdir()] == [IDENTITY]:
        (path / IDENTITY).unlink()
        path.rmdir()


def _difference(held: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Name the first setting in which two identities differ, with both values; the kind of work comes first."""
    old, new = _flat(held), _flat(wanted)
    for key in sorted(old.keys() | new.keys(), key=lambda key: (key != "kind", key)):
        if old.get(key) != new.get(key):
            return f"its {key} is {old.get(key, 'not set')}, yours is {new.get(key, 'not set')}"
    return "its settings differ"


def _flat(data: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten nested settings to dotted keys and JSON values."""
    flat: dict[str, str] = {}
    for key, value in data.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = json.dumps(value)
    return flat


def now() -> str:
    """Return the present time, UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@functools.cache
def environment() -> dict[str, Any]:
    """Return versions, hardware and the code's commit, for a record."""
    import psutil
    import torch

    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "versions": {name: _version(name) for name in VERSIONED},
        "processor_count": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "torch_threads": torch.get_num_threads(),
        "accelerators": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "commit": _commit(),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Return the git commit of the source tree this package runs from, or None for an installed package."""
    here = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
