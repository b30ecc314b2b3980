"""How everything is written: files and folders that are seen whole or not at all, and the folder that a command claims.

A file is written to a temporary name, flushed to the disk and renamed, so that a reader sees the old file or the new
one and never a part. A folder's `record.json` is written last: a folder without it is unfinished work. A whole folder
is filled under a hidden temporary name beside its place, then renamed.
"""

import errno
import glob
import json
import math
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from inheritune.errors import InherituneError, OutputError
from inheritune.progress import note

RECORD = "record.json"
FRONTIER = "frontier.json"
IDENTITY = "identity.json"
_TEMPORARY = ".tmp"
_ASIDE = ".old"

_FILLED = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)
"""What the system answers to a rename to a place that is not an empty folder."""


def user_path(name: str | Path, kind: type[InherituneError] = OutputError) -> Path:
    """Return the path that a user named, `~` replaced; what cannot be one (too long, empty) is an error of `kind`."""
    if not str(name):
        raise kind("an empty path: expected a file or a folder, or . for the current folder")
    try:
        path = Path(name).expanduser()
        path.exists()
    except (OSError, RuntimeError) as error:  # RuntimeError: no such user behind ~
        raise kind(f"cannot use {str(name)[:80]!r} as a path: {getattr(error, 'strerror', None) or error}") from error
    return path


@contextmanager
def written_file(path: Path) -> Iterator[BinaryIO]:
    """Give a binary file to fill that becomes `path` when the block ends: `path` is never seen half-written.

    Raises:
        OutputError: the folder cannot be created or written, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):  # on a read-only disk nothing can be removed, not even what is not there
            temporary.unlink()
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, as `written_file` does; bytes of file names that are not UTF-8 become `?`."""
    with written_file(path) as file:
        file.write(text.encode("utf-8", "replace"))


def write_json(path: Path, data: Any, indent: int | None = 2) -> None:
    """Write `data` to `path` as JSON, atomically; NaN and infinity are refused (they are not JSON)."""
    write_text(path, json.dumps(data, indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file. Numbers that are not finite, or whole ones that do not fit into 64 bits, are not read.

    Raises:
        OutputError: the file is missing or is not JSON.
    """
    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text, parse_constant=_finite, parse_float=_finite, parse_int=_whole)
    except FileNotFoundError as error:
        raise OutputError(f"no file {path}: expected a record written by inheritune") from error
    except (OSError, ValueError, RecursionError) as error:
        raise OutputError(f"cannot read {path} as JSON: {getattr(error, 'strerror', None) or error}") from error


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"it holds {text}, which is not a finite number")
    return value


def _whole(text: str) -> int:
    if (value := int(text)).bit_length() > 64:
        raise ValueError(f"it holds a whole number of {len(text)} digits")
    return value


@contextmanager
def claimed(
    path: Path, identity: dict[str, Any], option: str = "--out", preparation: Iterable[str] = ()
) -> Iterator[None]:
    """Make `path` the folder of the work described by `identity` while the block does that work.

    `identity.json` inside the folder says what the folder is for. The same work again goes on with it; other work is
    refused, so that nothing is overwritten. A claim with no work behind it is given back, so that corrected settings
    can have the folder: however the block fails, where it wrote nothing; and after a user's mistake also where it wrote
    `preparation` alone, which is removed.

    Args:
        path: the folder.
        identity: what makes the work this one and no other, plain data.
        option: what the command line calls the folder.
        preparation: names in the folder of what is quickly made again, such as `data`.

    Raises:
        OutputError: as `check_folder`.
    """
    check_folder(path, identity, option)
    fresh = not (path / IDENTITY).is_file()
    made = missing_folders(path)
    if fresh:
        write_json(path / IDENTITY, identity)
    try:
        yield
    except BaseException as error:
        known = {IDENTITY.split(".")[0], *(preparation if isinstance(error, InherituneError) else ())}
        # Temporary files begin with a dot and the name of what they become.
        if fresh and all(each.name.lstrip(".").split(".")[0] in known for each in path.iterdir()):
            remove_made(path, made)
        raise


def check_folder(path: Path, identity: dict[str, Any], option: str = "--out") -> None:
    """Refuse a folder that `claimed` would refuse, and write nothing.

    Raises:
        OutputError: the folder holds other work or foreign files, or cannot be written.
    """
    there = next(folder for folder in (user_path(path), *path.absolute().parents) if folder.exists())
    if not there.is_dir():
        raise OutputError(f"{option} {path}: {there} is a file, expected a folder: pass a new or empty {option} folder")
    held = read_identity(path, option)
    if held is not None and (why := difference(held, identity)):
        raise OutputError(f"{path} holds another run ({why}): pass another {option} folder")
    if held is None and path.exists() and any(path.iterdir()):
        raise OutputError(f"{path} exists and was not made by this command: pass a new or empty {option} folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write into {there}: pass another {option} folder")


def read_identity(path: Path, option: str = "--out") -> dict[str, Any] | None:
    """Return what the folder `path` is claimed for, None where nothing is.

    Raises:
        OutputError: its `identity.json` is damaged.
    """
    stamp = path / IDENTITY
    if not stamp.is_file():
        return None
    try:
        held = read_json(stamp)
    except OutputError as error:
        raise OutputError(f"{error}; pass another {option} folder") from error
    if not isinstance(held, dict):
        raise OutputError(f"{stamp} holds a {type(held).__name__}, not settings: pass another {option} folder")
    return held


def missing_folders(path: Path) -> list[Path]:
    """Return which of a folder and those above it are not there yet, the innermost first."""
    return [folder for folder in (path, *path.parents) if not folder.exists()]


def remove_made(path: Path, made: Iterable[Path]) -> None:
    """Empty the folder `path`, and remove those that were `made` for it, up to the first that holds something else."""
    with suppress(OSError):
        for each in path.iterdir():
            shutil.rmtree(each) if each.is_dir() else each.unlink()
        for folder in made:
            folder.rmdir()


def difference(held: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Name the first setting in which two works differ, with both values, the kind of work first; "" if none does."""
    old, new = _flat(held), _flat(wanted)
    for key in sorted(old.keys() | new.keys(), key=lambda key: (key != "kind", key)):
        if old.get(key) != new.get(key):
            return f"its {key} is {old.get(key, 'not set')}, yours is {new.get(key, 'not set')}"
    return ""


def _flat(value: Any, name: str = "") -> dict[str, str]:
    """Flatten nested settings to dotted keys and JSON values."""
    if not isinstance(value, dict):
        return {name: json.dumps(value)}
    parts = (_flat(part, f"{name}.{key}" if name else key) for key, part in value.items())
    return {key: text for part in parts for key, text in part.items()}


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
    if file := next((parent for parent in place.parents if parent.is_file()), None):
        raise OutputError(f"cannot write {destination}: {file} is a file")
    made = missing_folders(place.parent)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        _restore(place)
        _clear_leftovers(place)
        with _locked_folder(place) as temporary, system_errors():
            yield temporary
            if sync:
                sync_folder(temporary)
            _take_place(temporary, place, replace)
            if sync:
                _sync_path(place.parent)
    except OSError as error:
        raise OutputError(f"cannot write {destination}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # all that hold something stay
            for folder in made:
                folder.rmdir()


@contextmanager
def system_errors() -> Iterator[None]:
    """Turn what a library says when the system refuses to write (no space, say) into the OSError that it was.

    safetensors and tokenizers put its number into their text; PyTorch's archives and NumPy only tell how far they came.
    """
    try:
        yield
    except InherituneError:
        raise
    except Exception as error:
        numbered = re.search(r"\(os error (\d+)\)", str(error))
        cut_short = re.search(r"PytorchStreamWriter|unexpected pos|requested and \d+ written", str(error))
        if getattr(error, "errno", None) or not (numbered or cut_short):
            raise
        number = int(numbered[1]) if numbered else errno.ENOSPC
        raise OSError(number, os.strerror(number)) from error


def is_being_filled(destination: Path) -> bool:
    """Return whether a living process is in a `whole_folder` of `destination`; False where locks are not known."""
    return os.name == "posix" and _clear_leftovers(destination.resolve())


def _take_place(temporary: Path, place: Path, replace: bool) -> None:
    """Rename `temporary` to `place`; what is there is put aside first, to come back if that fails, or must be empty."""
    aside = place.with_name(f".{place.name}{_ASIDE}")
    put_aside = replace and place.exists()
    try:
        if put_aside:
            place.rename(aside)
        elif place.exists():
            place.rmdir()
        temporary.rename(place)
    except OSError as error:
        if put_aside and not place.exists():
            aside.rename(place)
        elif error.errno in _FILLED:
            line = f"{place} was filled meanwhile by another process: it stays as it is, pass a new or empty folder"
            raise OutputError(line) from error
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _restore(place: Path) -> None:
    """Bring back what a process that was killed between two renames had put aside."""
    aside = place.with_name(f".{place.name}{_ASIDE}")
    if place.exists():
        shutil.rmtree(aside, ignore_errors=True)
    elif aside.exists():
        aside.rename(place)


@contextmanager
def _locked_folder(place: Path) -> Iterator[Path]:
    """Make a temporary folder for `place` and lock it; the lock goes with the process, however it ends."""
    while True:
        temporary = place.with_name(f".{place.name}.{uuid.uuid4().hex[:12]}{_TEMPORARY}")
        temporary.mkdir()
        lock = _lock(temporary)
        # Another process may have taken the folder for a leftover in the moment before it was locked.
        if temporary.exists() and (lock is not None or os.name != "posix"):
            break
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _clear_leftovers(place: Path) -> bool:
    """Remove the temporary folders for `place` that killed processes left; return whether living ones hold others."""
    folders = [*place.parent.glob(f".{glob.escape(place.name)}.{'?' * 12}{_TEMPORARY}")]
    locks = {folder: _lock(folder) for folder in folders}
    for folder, lock in locks.items():
        if lock is not None:
            note(f"removing {folder}, which a command that was killed left behind")
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)
    return None in locks.values()


def _lock(folder: Path) -> int | None:
    """Lock `folder` and return the descriptor that holds the lock; None if another process has it, or on Windows."""
    if os.name != "posix":
        return None
    import fcntl

    with suppress(FileNotFoundError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
        else:
            return descriptor
    return None


def sync_folder(folder: Path) -> None:
    """Wait until the disk has everything in `folder`."""
    for path in (*sorted(folder.rglob("*")), folder):
        _sync_path(path)


def _sync_path(path: Path) -> None:
    """Wait until the disk has what was written to a file, or the names in a folder."""
    if path.is_dir() and os.name != "posix":  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
