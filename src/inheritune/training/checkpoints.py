"""Checkpoints of a round: which of them are complete, and from which one training goes on.

An incomplete or damaged checkpoint is never loaded. `complete.json` is written last, when the disk has everything else,
and holds the digest of each file; a checkpoint whose files are not those is deleted, and the one before it is used.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from pathlib import Path
from typing import Any

from inheritune.errors import OutputError
from inheritune.storage import read_json, sync_folder, write_json

COMPLETE = "complete.json"
"""The last file of a checkpoint."""
FOLDER = "checkpoints"
"""Where the checkpoints of a round are, in the round's folder."""

_NEEDED = ("model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json", "rng_state*.pth")
_LOG = logging.getLogger(__name__)


def mark_complete(checkpoint: Path, step: int) -> None:
    """Write the last file of a checkpoint, once the disk has the others."""
    sync_folder(checkpoint)
    write_json(checkpoint / COMPLETE, {"step": step, "files": _digests(checkpoint)})


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint in `folder` that is complete and undamaged, or None; later ones are deleted.

    One warning says why they could not be used and from where training goes on.
    """
    problems, newest = [], None
    for path in sorted(folder.glob("checkpoint-*"), key=_step, reverse=True):
        problem = _problem(path)
        if problem is None:
            newest = path
            break
        problems.append(f"{path.name} cannot be used ({problem})")
        shutil.rmtree(path)
    if problems:
        goes_on = "this round starts anew" if newest is None else f"training goes on from {newest.name}"
        _LOG.warning("%s: %s", ", ".join(problems), goes_on)
    return newest


def delete_checkpoints(round_folder: Path) -> None:
    """Delete the checkpoints of a round that is finished: its model is saved and its record written."""
    shutil.rmtree(round_folder / FOLDER, ignore_errors=True)


def _step(checkpoint: Path) -> int:
    step = checkpoint.name.removeprefix("checkpoint-")
    return int(step) if step.isdigit() else -1


def _problem(checkpoint: Path) -> str | None:
    """Return what is wrong with a checkpoint in a few words, or None."""
    if not (checkpoint / COMPLETE).is_file():
        return "it is incomplete"
    try:
        held = read_json(checkpoint / COMPLETE)
    except OutputError:
        return f"{COMPLETE} is damaged"
    if not isinstance(held, dict) or not isinstance(held.get("files", {}), dict):
        return f"{COMPLETE} is damaged"
    if "files" not in held:  # written by version 0.1
        return _loading_problem(checkpoint)
    there = _digests(checkpoint)
    wrong = next((name for name, digest in held["files"].items() if there.get(name) != digest), None)
    if wrong is None:
        return None
    return f"{wrong} is {'damaged' if wrong in there else 'missing'}"


def _digests(checkpoint: Path) -> dict[str, str]:
    """Return the digest of each file of a checkpoint by its relative path."""
    digests = {}
    for path in sorted(checkpoint.rglob("*")):
        if path.is_file() and path.name != COMPLETE:
            with path.open("rb") as file:
                digests[path.relative_to(checkpoint).as_posix()] = hashlib.file_digest(file, "blake2b").hexdigest()
    return digests


def _loading_problem(checkpoint: Path) -> str | None:
    """Return which file of a checkpoint without digests cannot be loaded, or None."""
    for pattern in _NEEDED:
        paths = list(checkpoint.glob(pattern))
        if not paths:
            return f"{pattern} is missing"
        for path in paths:
            try:
                _load(path)
            except Exception:  # noqa: BLE001 - readers of damaged files raise whatever they stumble over
                return f"{path.name} is damaged"
    return None


def _load(path: Path) -> Any:
    import torch
    from safetensors.torch import load_file
    from transformers.trainer_pt_utils import safe_globals

    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))
    if path.suffix == ".safetensors":
        return load_file(path)
    with safe_globals():  # as the Trainer reads them
        return torch.load(path, map_location="cpu", weights_only=True)
