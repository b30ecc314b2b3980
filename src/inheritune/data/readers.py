"""How the texts of one file are read, packed or not: those between separators, of a field of its rows, or the whole.

Of rows only that field is read, and as text: other fields may hold anything. Every fault is one line with the file and
the line or row. Files are read piece by piece, except a `.json` file that is one array.
"""

import bz2
import codecs
import csv
import gzip
import io
import itertools
import json
import lzma
import re
import reprlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from inheritune.errors import DataError, library_errors, nearest, reason

END_OF_TEXT = "<|endoftext|>"
BLANK_LINE = "\n\n"
"""The separator of documents unless told otherwise; the blank line between the two ends may hold spaces."""
PIECE = 1 << 20
BATCH_ROWS = 1000

_JSON = json.JSONDecoder(parse_int=float)  # Python's integers have a greatest length, JSON's have none
_SPACES = re.compile(r"^[^\S\n]+$", re.MULTILINE)


def _open_zstd(path: Path, mode: str) -> IO[bytes]:
    import pyarrow

    return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(str(path), mode), "zstd"))


PACKED: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open, ".zst": _open_zstd}


def ending(path: Path) -> str:
    """Return a file's last ending in lower case, the one before it where the last says how it is packed."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def read_texts(path: Path, separator: str, field: str) -> Iterator[str | None]:
    """Yield the texts of a file as its ending in `FORMATS` says, one for each row of a file of rows.

    A null is None, and a whole file that is not UTF-8. `separator` and `field` are as for `read_documents`.

    Raises:
        DataError: the file cannot be read or is not UTF-8, or a row has no such field or no text there.
    """
    kind, row = ending(path), 1
    try:
        for text in FORMATS[kind](path, separator, field):
            yield text
            row += 1
    except Exception as error:
        place = f", row {row}" if kind in ROWS else ""
        raise DataError(f"cannot read {path}{place}: {reason(error)}") from error


def text_of(record: object, field: str) -> str | None:
    """Return the text in `field` of a row, None for a null.

    Raises:
        ValueError: the row is no object, has no such field, or holds something else than text there.
    """
    if not isinstance(record, dict):
        raise ValueError(f"it is {reprlib.repr(record)}, expected an object with the field {field!r}")
    _check_field(field, list(record))
    text = record[field]
    if not isinstance(text, str | None):
        raise ValueError(f"its {field!r} is {reprlib.repr(text)}, expected text")
    (text or "").encode()  # half of a surrogate pair is no character
    return text


def _check_field(field: str, names: list[str]) -> None:
    if field not in names:
        shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "") if names else "none"
        hint = f"name one with --field, or data.field in a recipe{nearest(field, names)}"
        raise ValueError(f"no field {field!r}, its fields are {shown}: {hint}")


def _open(path: Path) -> IO[bytes]:
    stream: IO[bytes] = PACKED.get(path.suffix.lower(), open)(path, "rb")
    return stream


def _whole(path: Path, separator: str, field: str) -> Iterator[str | None]:
    text = None
    with _open(path) as file, io.TextIOWrapper(file, "utf-8") as stream, suppress(UnicodeDecodeError):
        text = stream.read()
    yield text


def _between_separators(path: Path, separator: str, field: str) -> Iterator[str]:
    """Yield the parts between separators, without the line ends around them; blank ones are passed over.

    A text that marks its documents with `<|endoftext|>` in its first megabyte (TinyStories does) is split there.
    """
    mark, rest, line = "", "", 1
    with _open(path) as file:
        # Pieces end with a line, so that a blank line is seen whole.
        for raw in iter(lambda: file.read(PIECE) + file.readline(), b""):
            try:
                piece = raw.decode("utf-8-sig" if line == 1 else "utf-8").replace("\r\n", "\n").replace("\r", "\n")
            except UnicodeDecodeError as error:
                line += error.object[: error.start].count(b"\n")
                raise ValueError(f"line {line} is not UTF-8 ({error.reason})") from error
            mark = mark or (END_OF_TEXT if END_OF_TEXT in piece else separator)
            piece = _SPACES.sub("", piece) if mark == BLANK_LINE else piece
            *whole, rest = (rest + piece).split(mark)
            yield from (text.strip("\n") for text in whole if text.strip())
            line += raw.count(b"\n")
    if rest.strip():
        yield rest.strip("\n")


def _json(path: Path, separator: str, field: str) -> Iterator[str | None]:
    """Yield of the lines of a file, or of the items of one JSON value that goes over several lines."""
    with _open(path) as file:
        first = file.readline().removeprefix(codecs.BOM_UTF8)
        if first.lstrip().startswith(b"[") or first.strip() == b"{":
            held = _parse(first + file.read())
            yield from (text_of(item, field) for item in (held if isinstance(held, list) else [held]))
        else:
            for line in itertools.chain([first], file):
                yield text_of(_parse(line), field) if line.strip() else ""


def _parse(data: bytes) -> object:
    text = data.decode()
    with library_errors("no JSON", kind=DataError):
        return _JSON.decode(text)


def _csv(path: Path, separator: str, field: str) -> Iterator[str]:
    csv.field_size_limit(2**31 - 1)  # documents are longer than the cells that the module expects
    with _open(path) as file, io.TextIOWrapper(file, "utf-8-sig", newline="") as stream:
        rows = csv.reader(stream, delimiter="\t" if ending(path) == ".tsv" else ",", strict=True)
        names = next(rows, [field])
        _check_field(field, names)
        for cells in rows:
            if cells and len(cells) != len(names):
                raise ValueError(f"{len(cells)} columns, expected {len(names)}")
            yield cells[names.index(field)] if cells else ""


def _parquet(path: Path, separator: str, field: str) -> Iterator[str | None]:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        _check_field(field, file.schema_arrow.names)
        for batch in file.iter_batches(BATCH_ROWS, columns=[field]):
            yield from (text_of({field: value.as_py()}, field) for value in batch.column(0))


ROWS = {".jsonl": _json, ".ndjson": _json, ".json": _json, ".csv": _csv, ".tsv": _csv, ".parquet": _parquet}
"""Readers of files that hold rows."""
WHOLE = {".py": _whole, ".md": _whole}
"""Readers of files that are one document each, in a folder."""
FORMATS: dict[str, Callable[[Path, str, str], Iterator[str | None]]] = {".txt": _between_separators, **ROWS, **WHOLE}
