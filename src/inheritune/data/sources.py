"""Where text comes from: Python's own standard library, files, folders, or a data set of the hub.

A source yields documents. A document's key decides by its hash whether it is for training or for validation, so that
the split depends neither on the order of files nor on the machine.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from inheritune.checkpoints.stored import refuse_pointer
from inheritune.data.readers import BLANK_LINE, ROWS, ending, read_rows, read_texts, read_whole, reason, text_of
from inheritune.data.shards import is_shards
from inheritune.errors import DataError, nearest
from inheritune.progress import note, progress
from inheritune.records.data import SourceContent
from inheritune.storage import IDENTITY

STDLIB = "stdlib"
VALID_FRACTION = 0.04
"""The share of documents that are for validation unless told otherwise."""
HUB_PREFIX = "hf:"
TABLES = (".txt", *ROWS)
"""Endings of files of many documents."""
WHOLE = (".py", ".md")
"""Endings of files that are one document each, in a folder."""
HELD_OUT = re.compile(r"(.*[-_.\d])?(validation|valid|val|dev|testing|test|evaluation|eval)([-_.\d].*)?", re.IGNORECASE)
"""Names of files and folders of a split that is not for training, as data sets on the hub have them."""


@dataclass(frozen=True)
class Document:
    """One text and the key that decides its split: a path relative to the source, or the text itself."""

    key: str
    text: str

    def position(self) -> float:
        """Return the document's place in [0, 1), uniform and fixed by the SHA-256 of its key."""
        digest = hashlib.sha256(self.key.encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:8], "big") / 2**64


@dataclass
class _Files:
    """The files of a source below its root, and what is left out of it: the first place and the number by reason."""

    root: Path
    paths: list[Path] = dataclasses.field(default_factory=list)
    left_out: dict[str, tuple[str, int]] = dataclasses.field(default_factory=dict)

    def leave_out(self, why: str, place: str) -> None:
        first, count = self.left_out.get(why, (place, 0))
        self.left_out[why] = (first, count + 1)

    def tell(self, source: str) -> None:
        """Say what was left out, if anything was."""
        parts = [f"{why}: {count} (first {place})" for why, (place, count) in self.left_out.items()]
        if parts:
            note(f"left out of {source}: {', '.join(parts)}")


def read_documents(source: str | Path, separator: str = BLANK_LINE, field: str = "text") -> Iterator[Document]:
    r"""Yield the documents of `source` in a fixed order; what is left out of it is counted and said at the end.

    Args:
        source: `"stdlib"` (the sources of Python's standard library, one document a file), a `.txt`, `.jsonl`,
            `.ndjson`, `.json`, `.csv`, `.tsv` or `.parquet` file (all but the last also packed with gz, xz, bz2 or
            zst), a folder of such files (its `.py` and `.md` files are documents too), or `"hf:NAME"` /
            `"hf:NAME:CONFIG"`, the `train` split of a data set of the hub. Hidden files of a folder and folders that
            inheritune wrote are passed over; files named as test or validation split are left out beside others.
        separator: what stands between two documents of a `.txt` file; a blank line unless told otherwise. A file
            whose first megabyte has `<|endoftext|>` is split there instead.
        field: the field of rows that holds the text.

    Raises:
        DataError: there is no such source, its kind is unknown, a file cannot be read, or a row has no such field.
        ModelError: a file is a pointer of git-lfs.
    """
    if not separator:
        raise DataError("the separator of documents is empty: expected at least one character, for example '\\n'")
    name = str(source)
    if name.startswith(HUB_PREFIX):
        return _hub_documents(name.removeprefix(HUB_PREFIX), field)
    files = _find(source)
    return _stdlib_documents(files) if name == STDLIB else _file_documents(name, files, separator, field)


def source_content(source: str | Path) -> SourceContent | None:
    """Return size and digest of what `read_documents` reads, None for a data set of the hub.

    Raises:
        DataError: there is no such source, or it cannot be read.
    """
    if str(source).startswith(HUB_PREFIX):
        return None
    files = _find(source)
    try:
        size = sum(path.stat().st_size for path in files.paths)
        with progress(f"reading {source}", size) as advance:
            digests = [(_digest(path, advance), path.relative_to(files.root).as_posix()) for path in files.paths]
    except OSError as error:
        raise DataError(f"cannot read {source}: {error.strerror or error}") from error
    listed = "".join(f"{digest}  {name}\n" for digest, name in digests)
    one = files.paths == [Path(source).expanduser()]
    return SourceContent(
        files=len(digests),
        bytes=size,
        sha256=digests[0][0] if one else hashlib.sha256(listed.encode("utf-8", "surrogateescape")).hexdigest(),
    )


def _digest(path: Path, advance: Any) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
            advance(len(piece))
    return digest.hexdigest()


def _find(source: str | Path) -> _Files:
    """Return the files of a source on this machine, in a fixed order."""
    if str(source) == STDLIB:
        return _stdlib_files()
    try:
        path = Path(source).expanduser()
        if path.is_dir():
            return _folder_files(path)
        if not path.is_file():
            siblings = [str(path.parent / item.name) for item in path.parent.iterdir()] if path.parent.is_dir() else []
            hint = nearest(str(source), [*siblings, STDLIB])
            raise DataError(f"no text at {source}: expected a file, a folder, 'stdlib' or 'hf:NAME'{hint}")
    except (OSError, RuntimeError) as error:  # a text instead of a name, no permission, no such user behind ~
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise DataError(f"no text at {str(source)[:80]!r}: {why}") from error
    if ending(path) not in TABLES:
        raise DataError(f"{path} is of no known kind: expected {', '.join(TABLES)}, or one of them packed")
    return _Files(path.parent, [path])


def _stdlib_files() -> _Files:
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = [(path, path.relative_to(root).parts) for path in sorted(root.rglob("*.py"))]
    return _Files(root, [path for path, parts in paths if {"site-packages", "dist-packages"}.isdisjoint(parts)])


def _folder_files(root: Path) -> _Files:
    """Return the readable files of a folder without its test and validation splits."""
    if _is_ours(root):
        raise DataError(f"{root} is a folder that inheritune wrote, of shards, a run or an analysis: expected text")
    files = _Files(root)
    readable = []
    for path in sorted(_walk(root)):
        if path.is_dir():
            files.leave_out("linked folders", path.relative_to(root).as_posix())
        elif ending(path) in TABLES + WHOLE:
            readable.append(path)
        else:
            files.leave_out("files of other kinds", path.relative_to(root).as_posix())
    held_out = {path for path in readable if _is_held_out(path, root)}
    mixed = any(ending(path) in TABLES and path not in held_out for path in readable)
    for path in readable:
        if mixed and path in held_out:
            files.leave_out("files of a test or validation split", path.relative_to(root).as_posix())
        else:
            files.paths.append(path)
    if not files.paths:
        raise DataError(f"the folder {root} holds no text: expected {', '.join(TABLES + WHOLE)} files")
    return files


def _walk(root: Path) -> Iterator[Path]:
    """Yield files and linked folders below `root`, without what is hidden and what inheritune wrote."""

    def refuse(error: OSError) -> NoReturn:
        raise DataError(f"cannot read the folder {error.filename}: {error.strerror}") from error

    for folder, names, files in os.walk(root, onerror=refuse):
        here = Path(folder)
        names[:] = [name for name in names if not name.startswith(".") and not _is_ours(here / name)]
        yield from (here / name for name in names if (here / name).is_symlink())
        yield from (here / name for name in files if not name.startswith(".") and not _is_special(here / name))


def _is_ours(folder: Path) -> bool:
    """Return whether inheritune wrote a folder: token shards, a run, an analysis."""
    return is_shards(folder) or (folder / IDENTITY).is_file()


def _is_special(path: Path) -> bool:
    """Return whether a name is a pipe, a socket or a device; a link to nothing is not, so that reading it says so."""
    return path.exists() and not path.is_file()


def _is_held_out(path: Path, root: Path) -> bool:
    return ending(path) in TABLES and any(HELD_OUT.fullmatch(part) for part in path.relative_to(root).parts)


def _stdlib_documents(files: _Files) -> Iterator[Document]:
    """Yield the library's files, without its few that are not UTF-8 (tests of codecs); a byte-order mark stays."""
    for path in files.paths:
        text = read_whole(path, "utf-8")
        if text is not None and text.strip():
            yield Document(path.relative_to(files.root).as_posix(), text)


def _file_documents(source: str, files: _Files, separator: str, field: str) -> Iterator[Document]:
    for path in files.paths:
        refuse_pointer(path)
        name = path.relative_to(files.root).as_posix()
        if ending(path) in ROWS:
            for row, text in read_rows(path, field):
                if text is None:
                    files.leave_out(f"rows whose {field!r} is null", f"{name}, row {row}")
                elif text.strip():
                    yield Document(text, text)
        elif ending(path) in TABLES:
            yield from (Document(text, text) for text in read_texts(path, separator))
        elif (whole := read_whole(path)) is None:
            files.leave_out("files that are not UTF-8", name)
        elif whole.strip():
            yield Document(name, whole)
    files.tell(source)


def _hub_documents(name: str, field: str) -> Iterator[Document]:
    import datasets

    files, row = _Files(Path()), 0
    dataset, _, config = name.partition(":")
    try:
        rows = datasets.load_dataset(dataset, config or None, split="train", streaming=True)
        for record in rows:
            text = text_of(record, field)
            if text is None:
                files.leave_out(f"rows whose {field!r} is null", f"row {row + 1}")
            elif text.strip():
                yield Document(text, text)
            row += 1
    except Exception as error:
        place = f", after row {row}" if row else ""
        raise DataError(f"cannot read the data set {name!r} of the hub{place}: {reason(error)}") from error
    files.tell(name)
