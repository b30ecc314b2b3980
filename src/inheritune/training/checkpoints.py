"""Checkpoints of a round: which of them are complete, and from which one training goes on."""

import hashlib
import logging
import shutil
from pathlib import Path

from inheritune.errors import OutputError
from inheritune.records.base import read_record
from inheritune.records.runs import CheckpointRecord
from inheritune.storage import sync_folder

COMPLETE = "complete.json"
FOLDER = "checkpoints"
TRUNK = "trunk"
"""Among them, the copy of the one that other rounds branch off from."""

_LOG = logging.getLogger(__name__)


def mark_complete(checkpoint: Path, step: int) -> None:
    """Write the last file of a checkpoint, with the digests of the others, once the disk has these."""
    sync_folder(checkpoint)
    CheckpointRecord(step=step, files=_digests(checkpoint)).write(checkpoint / COMPLETE)


def keep_trunk(checkpoint: Path, step: int) -> None:
    """Keep a copy of a checkpoint, which is not marked yet, for `branch_off`; newer checkpoints do not replace it."""
    kept, copy = checkpoint.with_name(TRUNK), checkpoint.with_name(f"{TRUNK}.part")
    for path in (kept, copy):
        shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(checkpoint, copy)
    mark_complete(copy, step)
    copy.rename(kept)


def branch_off(trunk: Path, folder: Path) -> None:
    """Let the round in `folder`, if it has no checkpoint, begin where the constant rate of the round `trunk` ended.

    Its logs begin with the lines of that round; those behind the checkpoint go when it is resumed.
    """
    kept, checkpoints = trunk / FOLDER / TRUNK, folder / FOLDER
    if not kept.is_dir() or any(checkpoints.glob("checkpoint-*")):
        return
    step, copy = read_record(kept / COMPLETE, CheckpointRecord).step, checkpoints / f"{TRUNK}.part"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(kept, copy)
    for log in trunk.glob("*.jsonl"):
        shutil.copy(log, folder)
    copy.rename(checkpoints / f"checkpoint-{step}")


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint in `folder` that is complete and undamaged, or None; later ones are deleted.

    One warning says why they could not be used and from where training goes on.
    """
    problems, paths = [], sorted(folder.glob("checkpoint-*"), key=_step)
    while paths and (problem := _problem(paths[-1])):
        problems.append(f"{paths[-1].name} cannot be used ({problem})")
        shutil.rmtree(paths.pop())
    if problems:
        goes_on = f"training goes on from {paths[-1].name}" if paths else "this round starts anew"
        _LOG.warning("%s: %s", ", ".join(problems), goes_on)
    return paths[-1] if paths else None


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
        written = read_record(checkpoint / COMPLETE, CheckpointRecord).files
    except OutputError:
        return f"{COMPLETE} is damaged"
    there = _digests(checkpoint)
    wrong = next((name for name, digest in written.items() if there.get(name) != digest), None)
    return wrong and f"{wrong} is {'damaged' if wrong in there else 'missing'}"


def _digests(checkpoint: Path) -> dict[str, str]:
    """Return the digest of each file of a checkpoint by its relative path."""
    digests = {}
    for path in sorted(checkpoint.rglob("*")):
        if path.is_file() and path.name != COMPLETE:
            with path.open("rb") as file:
                digests[path.relative_to(checkpoint).as_posix()] = hashlib.file_digest(file, "blake2b").hexdigest()
    return digests
