"""Where text comes from: Python's own standard library, files, folders, or a data set of the hub.

A source yields documents. A document's key decides by its hash whether it is for training or for validation, so that
the split depends neither on the order of files nor on the machine.
"""

import hashlib
import os
import re
import sysconfig
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from inheritune.checkpoints.stored import refuse_pointer
from inheritune.data.readers import BLANK_LINE, FORMATS, WHOLE, ending, read_texts, text_of
from inheritune.data.shards import is_shards
from inheritune.errors import DataError, nearest_path, reason
from inheritune.progress import note, progress
from inheritune.records.runs import SourceContent
from inheritune.storage import IDENTITY, user_path

STDLIB = "stdlib"
VALID_FRACTION = 0.04
"""The share of documents that are for validation unless told otherwise."""
HUB_PREFIX = "hf:"
MANY = tuple(kind for kind in FORMATS if kind not in WHOLE)
"""Endings of files of many documents."""
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
    paths: list[Path] = field(default_factory=list)
    _first: dict[str, str] = field(default_factory=dict)
    _count: Counter[str] = field(default_factory=Counter)

    def name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def leave_out(self, why: str, place: str) -> None:
        self._first.setdefault(why, place)
        self._count[why] += 1

    def say_left_out(self, source: str) -> None:
        parts = [f"{why}: {count} (first {self._first[why]})" for why, count in self._count.items()]
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
        if not re.fullmatch(r"[^:\s]+(:[^:\s]+)?", name.removeprefix(HUB_PREFIX)):
            raise DataError(f"{name!r} names no data set of the hub: expected hf:NAME or hf:NAME:CONFIG")
        return _hub_documents(name.removeprefix(HUB_PREFIX), field)
    return _file_documents(name, _find(source), separator, field)


def source_content(source: str | Path) -> SourceContent | None:
    """Return size and digest of what `read_documents` reads, None for a data set of the hub.

    Raises:
        DataError: there is no such source, or it cannot be read.
    """
    if str(source).startswith(HUB_PREFIX):
        return None
    files, digests = _find(source), []
    try:
        size = sum(path.stat().st_size for path in files.paths)
        with progress(f"reading {source}", size) as advance:
            for path in files.paths:
                with path.open("rb") as file:
                    digests.append(hashlib.file_digest(file, "sha256").hexdigest())
                    advance(file.tell())
    except OSError as error:
        raise DataError(f"cannot read {source}: {error.strerror or error}") from error
    listed = "".join(f"{digest}  {files.name(path)}\n" for digest, path in zip(digests, files.paths, strict=True))
    one = files.paths == [Path(source).expanduser()]
    return SourceContent(
        files=len(digests),
        bytes=size,
        sha256=digests[0] if one else hashlib.sha256(listed.encode("utf-8", "surrogateescape")).hexdigest(),
    )


def _find(source: str | Path) -> _Files:
    """Return the files of a source on this machine, in a fixed order."""
    if str(source) == STDLIB:
        root = Path(sysconfig.get_paths()["stdlib"])
        paths = [(path, path.relative_to(root).parts) for path in sorted(root.rglob("*.py"))]
        return _Files(root, [path for path, parts in paths if {"site-packages", "dist-packages"}.isdisjoint(parts)])
    path = user_path(source, DataError)
    if path.is_dir():
        return _folder_files(path)
    if not path.is_file():
        hint = nearest_path(path, STDLIB)
        raise DataError(f"no text at {source}: expected a file, a folder, 'stdlib' or 'hf:NAME'{hint}")
    if ending(path) not in MANY:
        raise DataError(f"{path} is of no known kind: expected {', '.join(MANY)}, or one of them packed")
    return _Files(path.parent, [path])


def _folder_files(root: Path) -> _Files:
    """Return the readable files of a folder without its test and validation splits."""
    if _is_ours(root):
        raise DataError(f"{root} is a folder that inheritune wrote, of shards, a run or an analysis: expected text")
    files = _Files(root)
    for path in sorted(_walk(root)):
        if not path.is_dir() and ending(path) in FORMATS:
            files.paths.append(path)
        else:
            files.leave_out("linked folders" if path.is_dir() else "files of other kinds", files.name(path))
    many = [path for path in files.paths if ending(path) in MANY]
    held_out = dict.fromkeys(path for path in many if any(map(HELD_OUT.fullmatch, path.relative_to(root).parts)))
    if len(held_out) < len(many):
        for path in held_out:
            files.leave_out("files of a test or validation split", files.name(path))
        files.paths = [path for path in files.paths if path not in held_out]
    if not files.paths:
        raise DataError(f"the folder {root} holds no text: expected {', '.join(FORMATS)} files")
    return files


def _walk(root: Path) -> Iterator[Path]:
    """Yield files and linked folders below `root`, without what is hidden and what inheritune wrote."""

    def refuse(error: OSError) -> NoReturn:
        raise DataError(f"cannot read the folder {error.filename}: {error.strerror}") from error

    for folder, names, files in os.walk(root, onerror=refuse):
        here = Path(folder)
        names[:] = [name for name in names if not name.startswith(".") and not _is_ours(here / name)]
        yield from (here / name for name in names if (here / name).is_symlink())
        # Pipes, sockets and devices are passed over; a link to nothing is not, so that reading it says so.
        paths = [here / name for name in files if not name.startswith(".")]
        yield from (path for path in paths if path.is_file() or not path.exists())


def _is_ours(folder: Path) -> bool:
    """Return whether inheritune wrote a folder: token shards, a run, an analysis."""
    return is_shards(folder) or (folder / IDENTITY).is_file()


def _file_documents(source: str, files: _Files, separator: str, field: str) -> Iterator[Document]:
    """Yield the documents of files, in their order.

    The few files of the standard library that are not UTF-8 (tests of codecs) are not counted, and a byte-order mark
    stays in the others.
    """
    for path in files.paths:
        refuse_pointer(path)
        name, whole = files.name(path), ending(path) in WHOLE
        for row, text in enumerate(read_texts(path, separator, field), start=1):
            if text is None and whole:
                files.leave_out("files that are not UTF-8", name)
            elif text is None:
                files.leave_out(f"rows whose {field!r} is null", f"{name}, row {row}")
            elif text.strip():
                text = text if source == STDLIB else text.removeprefix("\ufeff")
                yield Document(name if whole else text, text)
    if source != STDLIB:
        files.say_left_out(source)


def _hub_documents(name: str, field: str) -> Iterator[Document]:
    import datasets
    import huggingface_hub

    huggingface_hub.logging.set_verbosity_error()  # not a line for each retry: the error says why it gave up
    files, row = _Files(Path()), 0
    dataset, _, config = name.partition(":")
    try:
        for record in datasets.load_dataset(dataset, config or None, split="train", streaming=True):
            text = text_of(record, field)
            row += 1
            if text is None:
                files.leave_out(f"rows whose {field!r} is null", f"row {row}")
            elif text.strip():
                yield Document(text, text)
    except Exception as error:
        place = f", after row {row}" if row else ""
        raise DataError(f"cannot read the data set {name!r} of the hub{place}: {reason(error)}") from error
    files.say_left_out(name)
