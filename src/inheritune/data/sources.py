"""Where text comes from: Python's own standard library, files, folders, or a data set of the hub.

A source yields documents. A document's key decides by its hash whether it is for training or for validation, so that
the split depends neither on the order of files nor on the machine.
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inheritune.errors import DataError, nearest

STDLIB = "stdlib"
VALID_FRACTION = 0.04
"""The share of documents that are for validation unless told otherwise."""
END_OF_TEXT = "<|endoftext|>"
HUB_PREFIX = "hf:"
READERS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
PACKED = (".gz", ".xz", ".bz2", ".zst")


@dataclass(frozen=True)
class Document:
    """One text and the key that decides its split: a path relative to the source, or the text itself."""

    key: str
    text: str

    def position(self) -> float:
        """Return the document's place in [0, 1), uniform and fixed by the SHA-256 of its key."""
        digest = hashlib.sha256(self.key.encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:8], "big") / 2**64


def read_documents(source: str | Path, separator: str = "\n\n", field: str = "text") -> Iterator[Document]:
    r"""Yield the documents of `source` in a fixed order.

    Args:
        source: `"stdlib"` (the sources of Python's standard library, one document a file), a `.txt`, `.jsonl` or
            `.parquet` file (also packed with gz, xz, bz2 or zst), a folder of such files (its `.py` and `.md` files are
            documents too), or `"hf:NAME"` / `"hf:NAME:CONFIG"`, the `train` split of a data set of the hub.
        separator: what stands between two documents of a `.txt` file; one blank line unless told otherwise. A file
            whose first megabyte has `<|endoftext|>` is split there instead.
        field: the field of a JSON line or a table row that holds the text.

    Raises:
        DataError: there is no such source, its kind is unknown, or a row has no such field.
    """
    name = str(source)
    if name == STDLIB:
        return _stdlib_documents()
    if name.startswith(HUB_PREFIX):
        return _hub_documents(name.removeprefix(HUB_PREFIX), field)
    path = Path(source).expanduser()
    if path.is_dir():
        return _folder_documents(path, separator, field)
    if path.is_file():
        return _file_documents(path, separator, field)
    siblings = [str(path.parent / item.name) for item in path.parent.iterdir()] if path.parent.is_dir() else []
    hint = nearest(name, [*siblings, STDLIB])
    raise DataError(f"no text at {name}: expected a file, a folder, 'stdlib' or 'hf:NAME'{hint}")


def _stdlib_documents() -> Iterator[Document]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if {"site-packages", "dist-packages"}.isdisjoint(relative.parts):
            yield from _whole_file(path, relative.as_posix())


def _whole_file(path: Path, key: str) -> Iterator[Document]:
    """Yield the file as one document; a file that is not UTF-8 (the library's codec tests) is left out."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return
    if text.strip():
        yield Document(key, text)


def _folder_documents(root: Path, separator: str, field: str) -> Iterator[Document]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    readable = [path for path in files if _kind(path) or path.suffix in {".py", ".md"}]
    if not readable:
        raise DataError(f"the folder {root} holds no text: expected {', '.join(READERS)}, .py or .md files")
    for path in readable:
        if _kind(path):
            yield from _file_documents(path, separator, field)
        else:
            yield from _whole_file(path, path.relative_to(root).as_posix())


def _kind(path: Path) -> str | None:
    """Return the reader for a file by its suffix, looking behind a packed file's last one."""
    suffixes = path.suffixes
    if suffixes and suffixes[-1] in PACKED:
        suffixes = suffixes[:-1]
    return READERS.get(suffixes[-1]) if suffixes else None


def _file_documents(path: Path, separator: str, field: str) -> Iterator[Document]:
    kind = _kind(path)
    if kind is None:
        raise DataError(f"{path} is of no known kind: expected {', '.join(READERS)}, or one of them packed")
    if kind == "text":
        return _text_documents(path, separator)
    return _rows(_load(kind, path), field, str(path))


def _text_documents(path: Path, separator: str) -> Iterator[Document]:
    """Yield the parts of a text file between separators, reading it piece by piece.

    A text that marks its documents with `<|endoftext|>` (TinyStories does) is split there instead.
    """
    import fsspec

    mark, rest = None, ""
    try:
        with fsspec.open(path, "rt", encoding="utf-8", compression="infer") as file:
            while piece := file.read(1 << 20):
                mark = mark or (END_OF_TEXT if END_OF_TEXT in piece else separator)
                *whole, rest = (rest + piece).split(mark)
                yield from _documents(whole)
    except (OSError, UnicodeDecodeError, EOFError, ValueError) as error:
        raise DataError(f"cannot read {path} as UTF-8 text: {error}") from error
    yield from _documents([rest])


def _documents(texts: Iterable[str]) -> Iterator[Document]:
    """Yield the texts that are not blank, without the line ends around them."""
    for text in texts:
        if text.strip():
            yield Document(text.strip("\n"), text.strip("\n"))


def _load(kind: str, path: Path) -> Any:
    import datasets

    try:
        return datasets.load_dataset(kind, data_files=str(path), split="train", streaming=True)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path} as {kind}: {error}") from error


def _hub_documents(name: str, field: str) -> Iterator[Document]:
    import datasets

    dataset, _, config = name.partition(":")
    try:
        rows = datasets.load_dataset(dataset, config or None, split="train", streaming=True)
    except (OSError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise DataError(f"cannot load the data set {name!r} from the hub: {first}") from error
    return _rows(rows, field, name)


def _rows(rows: Any, field: str, source: str) -> Iterator[Document]:
    for row in rows:
        if field not in row:
            raise DataError(f"{source} has no field {field!r}: its fields are {', '.join(row)}{nearest(field, row)}")
        if row[field] and row[field].strip():
            yield Document(row[field], row[field])
