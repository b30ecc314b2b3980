"""How text is read out of one file, packed or not: texts between separators, or the field of its rows that holds text.

Only that field is read, and as text: other fields may hold anything. Every fault is one line with the file and the
line or row. Files are read piece by piece, except a `.json` file that is one array.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from inheritune.errors import DataError, nearest

END_OF_TEXT = "<|endoftext|>"
BLANK_LINE = "\n\n"
"""The separator of documents unless told otherwise; the blank line between the two ends may hold spaces."""
PIECE = 1 << 20
BATCH_ROWS = 1000

_JSON = json.JSONDecoder(parse_int=float)  # Python's integers have a greatest length, JSON's have none
_SPACES = re.compile(r"^[^\S\n]+$", re.MULTILINE)


def _open_zstd(path: Path) -> IO[bytes]:
    import pyarrow

    return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd"))


def _open_plain(path: Path) -> IO[bytes]:
    return path.open("rb")


PACKED: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open, ".zst": _open_zstd,
}  # fmt: skip


def ending(path: Path) -> str:
    """Return a file's last ending in lower case, the one before it where the last says how it is packed."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _open(path: Path) -> IO[bytes]:
    stream: IO[bytes] = PACKED.get(path.suffix.lower(), _open_plain)(path)
    return stream


def read_whole(path: Path, encoding: str = "utf-8-sig") -> str | None:
    """Return the whole text of a file, None where it is not UTF-8.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with _open(path) as file, io.TextIOWrapper(file, encoding=encoding) as text:
            return text.read()
    except UnicodeDecodeError:
        return None
    except Exception as error:
        raise DataError(f"cannot read {path}: {reason(error)}") from error


def read_texts(path: Path, separator: str) -> Iterator[str]:
    """Yield the parts of a text file between separators, without the line ends around them; blank ones are passed over.

    A text that marks its documents with `<|endoftext|>` in its first megabyte (TinyStories does) is split there.

    Raises:
        DataError: the file cannot be read, is not UTF-8, or is packed and cut short.
    """
    mark, rest, line = "", "", 1
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8-sig")(), translate=True)
    try:
        with _open(path) as file:
            for raw in _pieces(file):
                piece = decoder.decode(raw, final=not raw)
                mark = mark or (END_OF_TEXT if END_OF_TEXT in piece else separator)
                piece = _SPACES.sub("", piece) if mark == BLANK_LINE else piece
                *whole, rest = (rest + piece).split(mark)
                yield from (text.strip("\n") for text in whole if text.strip())
                line += raw.count(b"\n")
    except UnicodeDecodeError as error:
        line += error.object[: error.start].count(b"\n")
        raise DataError(f"cannot read {path} as UTF-8 text, line {line}: {reason(error)}") from error
    except Exception as error:
        place = f", after line {line - 1}" if line > 1 else ""
        raise DataError(f"cannot read {path}{place}: {reason(error)}") from error
    if rest.strip():
        yield rest.strip("\n")


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    """Yield a file in pieces that end with a line, so that a blank line is seen whole; an empty one ends it."""
    while piece := file.read(PIECE) + file.readline(PIECE):
        yield piece
    yield b""


def read_rows(path: Path, field: str) -> Iterator[tuple[int, str | None]]:
    """Yield (number, text) of each row of JSON lines, a JSON array, CSV, TSV or Parquet; None is a null.

    Raises:
        DataError: the file cannot be read, or a row has no such field or holds something else than text there.
    """
    row = 1
    try:
        for record in _RECORDS[ending(path)](path, field):
            yield row, _text(record, field)
            row += 1
    except Exception as error:
        raise DataError(f"cannot read {path}, row {row}: {reason(error)}") from error


def text_of(record: object, field: str) -> str | None:
    """Return the text in `field` of a row, None for a null.

    Raises:
        ValueError: the row is no object, has no such field, or holds something else than text there.
    """
    if not isinstance(record, dict):
        raise ValueError(f"it holds {_kind(record)}, expected an object with the field {field!r}")
    if field not in record:
        raise ValueError(_no_field(field, list(record)))
    value = record[field]
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError(f"its {field!r} holds {_kind(value)}, expected text")
    value.encode()  # half of a surrogate pair is no character
    return value


def _text(record: object, field: str) -> str | None:
    """Return the text of a record: an object, or a line of JSON that is to be parsed."""
    if not isinstance(record, bytes):
        return text_of(record, field)
    if not record.strip():
        return ""
    return text_of(_JSON.decode(record.decode("utf-8")), field)


def _json_records(path: Path, field: str) -> Iterator[object]:
    """Yield the lines of a file, or the items of one JSON value that goes over several lines."""
    with _open(path) as file:
        first = file.readline().removeprefix(codecs.BOM_UTF8)
        if first.lstrip().startswith(b"[") or first.strip() == b"{":
            held = _JSON.decode((first + file.read()).decode("utf-8"))
            yield from held if isinstance(held, list) else [held]
        else:
            yield first
            yield from file


def _csv_records(path: Path, field: str) -> Iterator[object]:
    csv.field_size_limit(2**31 - 1)  # documents are longer than the cells that the module expects
    with _open(path) as file, io.TextIOWrapper(file, "utf-8-sig", newline="") as text:
        rows = csv.reader(text, delimiter="\t" if ending(path) == ".tsv" else ",", strict=True)
        names = next(rows, [field])
        if field not in names:
            raise ValueError(_no_field(field, names))
        for cells in rows:
            if cells and len(cells) != len(names):
                raise ValueError(f"{len(cells)} columns, expected {len(names)}")
            yield dict(zip(names, cells, strict=True)) if cells else {field: ""}


def _parquet_records(path: Path, field: str) -> Iterator[object]:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        if field not in file.schema_arrow.names:
            raise ValueError(_no_field(field, file.schema_arrow.names))
        for batch in file.iter_batches(BATCH_ROWS, columns=[field]):
            for value in batch.column(0):
                yield {field: value.as_py()}


_RECORDS: dict[str, Callable[[Path, str], Iterator[object]]] = {
    ".jsonl": _json_records, ".ndjson": _json_records, ".json": _json_records,
    ".csv": _csv_records, ".tsv": _csv_records, ".parquet": _parquet_records,
}  # fmt: skip
ROWS = tuple(_RECORDS)
"""The endings of files that hold rows."""


def _no_field(field: str, names: list[str]) -> str:
    shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "") if names else "none"
    hint = f"name one with --field, or data.field in a recipe{nearest(field, names)}"
    return f"no field {field!r}, its fields are {shown}: {hint}"


def _kind(value: object) -> str:
    kinds = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object", str: "text"}
    return "null" if value is None else kinds.get(type(value), type(value).__name__)


def reason(error: Exception) -> str:
    """Return the first line of what went wrong."""
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 (byte 0x{error.object[error.start]:02x}, {error.reason})"
    if isinstance(error, UnicodeEncodeError):
        return f"half of a character ({error.object[error.start]!a}) in the text"
    if isinstance(error, json.JSONDecodeError):
        place = f"line {error.lineno}, column" if error.lineno > 1 else "column"
        return f"no JSON, {error.msg[:1].lower()}{error.msg[1:]} ({place} {error.colno})"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
