"""Folders that appear whole or not at all: filled under a hidden temporary name beside their place, then renamed.

A process that is killed leaves its temporary folder behind. The next one that writes to the same place removes it, but
never one that is still being filled: the kernel holds a lock on it for as long as its process lives.
"""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from inheritune.errors import InherituneError, OutputError

_TEMPORARY = ".tmp"
_ASIDE = ".old"

_FILLED = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)
"""What the system answers to a rename to a place that is not an empty folder."""


@contextmanager
def whole_folder(destination: Path, replace: bool = False, sync: bool = False) -> Iterator[Path]:
    """Give a temporary folder to fill; it becomes `destination` when the block ends without an error.

    Args:
        destination: its name; nothing or an empty folder may be there, where `replace` is False.
        replace: put it in the place of a folder that is there already, which is lost only when the new one stands.
        sync: write everything to the disk before the folder gets its name, so that a power cut cannot leave a folder
            that looks whole and is not.

    Raises:
        OutputError: it cannot be written (no space, no permission), or another process filled it meanwhile and it is
            not to be replaced; nothing is left behind, and what was there stays.
    """
    place = destination.resolve()  # beside what a link points to, the rename stays within one file system
    for parent in place.parents:
        if parent.is_file():
            raise OutputError(f"cannot write {destination}: {parent} is a file")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        _restore(place)
        _clear_leftovers(place)
        temporary, lock = _make_locked(place)
        try:
            yield temporary
            if sync:
                _sync(temporary)
            _take_place(temporary, place, replace)
            if sync:
                _sync_path(place.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            if lock is not None:
                os.close(lock)
    except InherituneError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write {destination}: {error.strerror or error}") from error


def _take_place(temporary: Path, place: Path, replace: bool) -> None:
    """Rename `temporary` to `place`; a folder that is there is put aside first and comes back if that fails."""
    if not replace:
        _take_free_place(temporary, place)
        return
    if not place.exists():
        temporary.rename(place)
        return
    aside = place.with_name(f".{place.name}{_ASIDE}")
    place.rename(aside)
    try:
        temporary.rename(place)
    except OSError:
        aside.rename(place)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _take_free_place(temporary: Path, place: Path) -> None:
    """Rename `temporary` to `place`, where nothing or an empty folder may be; the system itself refuses more."""
    try:
        if place.exists():
            place.rmdir()
        temporary.rename(place)
    except OSError as error:
        if error.errno in _FILLED:
            line = f"{place} was filled meanwhile by another process: it stays as it is, pass a new or empty folder"
            raise OutputError(line) from error
        raise


def _restore(place: Path) -> None:
    """Bring back what a process that was killed between two renames had put aside."""
    aside = place.with_name(f".{place.name}{_ASIDE}")
    if not aside.exists():
        return
    if place.exists():
        shutil.rmtree(aside, ignore_errors=True)
    else:
        aside.rename(place)


def _make_locked(place: Path) -> tuple[Path, int | None]:
    """Make a temporary folder for `place` and lock it; the lock goes with the process, however it ends."""
    while True:
        temporary = place.with_name(f".{place.name}.{uuid.uuid4().hex[:12]}{_TEMPORARY}")
        temporary.mkdir()
        if os.name != "posix":
            return temporary, None
        lock = _lock(temporary)
        # Another process may have taken the folder for a leftover in the moment before it was locked.
        if lock is not None and temporary.exists():
            return temporary, lock
        if lock is not None:
            os.close(lock)


def _clear_leftovers(place: Path) -> None:
    """Remove temporary folders for `place` that no living process holds."""
    if os.name != "posix":
        return
    start = f".{place.name}."
    for path in place.parent.iterdir():
        token = path.name.removeprefix(start).removesuffix(_TEMPORARY)
        if path.name != f"{start}{token}{_TEMPORARY}" or len(token) != 12 or not path.is_dir():
            continue
        lock = _lock(path)
        if lock is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """Lock `folder` and return the open descriptor that holds the lock, or None if another process has it."""
    import fcntl

    with suppress(FileNotFoundError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor
    return None


def _sync(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        _sync_path(path)
    _sync_path(folder)


def _sync_path(path: Path) -> None:
    """Wait until the disk has what was written to a file, or the names in a folder."""
    if path.is_dir() and os.name != "posix":  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
