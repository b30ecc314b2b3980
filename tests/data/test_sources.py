"""A table of inputs that people have, each with the documents it gives or the one line that says what is wrong."""

from __future__ import annotations

import bz2
import gzip
import logging
import lzma
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest

from inheritune.data import open_shards, prepare, read_documents
from inheritune.errors import DataError, InherituneError

ROWS = b'{"text": "one"}\n{"text": "two"}\n'
TEXT = b"one\n\ntwo\n"
BOTH = ["one", "two"]


def table(**columns: Any) -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table(columns), sink)
    return bytes(sink.getvalue())


def packed(data: bytes, codec: str) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, codec) as stream:
        stream.write(data)
    return bytes(sink.getvalue())


NOT_TEXT = pyarrow.Array.from_buffers(
    pyarrow.string(), 2, [None, pyarrow.array([0, 1, 3], pyarrow.int32()).buffers()[1], pyarrow.py_buffer(b"a\xff\xfe")]
)
BOM = b"\xef\xbb\xbf"
MEMBERS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": lambda data: packed(data, "zstd")}

GOOD: dict[str, tuple[bytes, list[str]]] = {
    "upper.JSONL": (ROWS, BOTH),
    "lines.ndjson": (ROWS, BOTH),
    "lines.json": (ROWS, BOTH),
    "array.json": (b'[{"text": "one"},\n {"text": "two"}]', BOTH),
    "object.json": (b'{\n"text": "one"\n}', ["one"]),
    "mark.jsonl": (BOM + ROWS, BOTH),
    "windows.jsonl": (ROWS.replace(b"\n", b"\r\n"), BOTH),
    "no last line end.jsonl": (ROWS[:-1], BOTH),
    "blank lines.jsonl": (b"\n" + ROWS.replace(b"\n", b"\n \n"), BOTH),
    "other fields.jsonl": (b'{"text": "one", "n": null}\n{"n": [{}], "text": "two", "more": NaN}\n', BOTH),
    "long number.jsonl": (b'{"text": "one", "n": ' + b"9" * 5000 + b"}\n", ["one"]),
    "null.jsonl": (b'{"text": null}\n' + ROWS, BOTH),
    "pair.jsonl": (b'{"text": "\\ud83d\\ude00"}', ["😀"]),
    "table.csv": (b'n,text\n1,one\n2,"two, ""2""\nmore"\n', ["one", 'two, "2"\nmore']),
    "mark.csv": (BOM + b"text\none\n\n", ["one"]),
    "long.csv": (b"text\n" + b"a" * 200000, ["a" * 200000]),
    "table.tsv": (b"n\ttext\n1\tone\n", ["one"]),
    "table.parquet": (table(text=[*BOTH, None], n=[[1], [], None]), BOTH),
    "words.parquet": (table(text=pyarrow.array(BOTH).dictionary_encode()), BOTH),
    "large.parquet": (table(text=pyarrow.array(BOTH, pyarrow.large_string())), BOTH),
    "UPPER.TXT": (TEXT, BOTH),
    "mark.txt": (BOM + TEXT, BOTH),
    "windows.txt": (TEXT.replace(b"\n", b"\r\n"), BOTH),
    "spaces.txt": (b"one\n \t\ntwo\n\n \n  three\n   \n", ["one", "two", "  three"]),
    "MEMBERS.TXT.GZ": (gzip.compress(TEXT) + gzip.compress(b"\nthree"), [*BOTH, "three"]),
    **{f"members.jsonl.{end}": (pack(ROWS) + pack(ROWS), BOTH * 2) for end, pack in MEMBERS.items()},
}

BAD: dict[str, tuple[bytes, str]] = {
    "cut.jsonl": (ROWS + b'{"text": "killed while wri', "row 3: no JSON: Unterminated string"),
    "latin.jsonl": (ROWS + b'{"text": "caf\xe9"}', "row 3: 'utf-8' codec can't decode byte 0xe9"),
    "utf-16.jsonl": (ROWS.decode().encode("utf-16"), "row 1: 'utf-8' codec can't decode"),
    "list.jsonl": (b'{"text": ["one", "two"]}', "row 1: its 'text' is .'one', 'two'., expected text"),
    "number.jsonl": (ROWS + b'{"text": 7}\n' + ROWS, "row 3: its 'text' is 7.0, expected text"),
    "no object.jsonl": (ROWS + b'"one"\n', "row 3: it is 'one', expected an object with the field 'text'"),
    "other field.jsonl": (ROWS + b'{"content": "a"}', "row 3: no field 'text', its fields are content: .* --field"),
    "half character.jsonl": (b'{"text": "a\\ud83d"}', r"row 1: .*'\\ud83d' in position 1: surrogates not allowed"),
    "deep.jsonl": (b'{"text": "a", "n": ' + b"[" * 100000 + b"]" * 100000 + b"}", "row 1: no JSON: maximum recursion"),
    "array.json": (b'[{"text": "one"},\n {"text": }]', "no JSON: Expecting value: line 2 column 11"),
    "short.csv": (b"n,text\n1,one\n2\n", "row 2: 1 columns, expected 2"),
    "cut.csv": (b'text\none\n"tw', "row 2: unexpected end of data"),
    "latin.csv": (b"text\ncaf\xe9\n", "row 1: 'utf-8' codec can't decode"),
    "semicolon.csv": (b"n;text\n1;one\n", "no field 'text', its fields are n;text"),
    "empty.parquet": (b"", "Parquet file size is 0"),
    "no.parquet": (ROWS, "Parquet magic bytes not found"),
    "bytes.parquet": (table(text=[b"one"]), "row 1: its 'text' is b'one', expected text"),
    "not text.parquet": (table(text=NOT_TEXT), "row 2: 'utf-8' codec can't decode byte 0xff"),
    "other field.parquet": (table(content=["one"]), "no field 'text', its fields are content"),
    "latin.txt": (TEXT + b"\ncaf\xe9", "line 5 is not UTF-8 .unexpected end of data"),
    "half character.txt": (TEXT + "é".encode()[:1], "line 4 is not UTF-8"),
    "pointer.txt": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "is a git-lfs pointer"),
    "damaged.txt.gz": (gzip.compress(TEXT)[:-8] + bytes(8), "CRC check failed"),
    "junk.txt.gz": (gzip.compress(TEXT) + b"junk", "Not a gzipped file"),
    "folder.tar.gz": (b"", "no known kind: expected .txt"),
    "paper.pdf": (b"%PDF", "no known kind: expected .txt"),
    **{f"no.txt.{end}": (TEXT, "cannot read") for end in MEMBERS},
    **{f"cut.txt.{end}": (pack(TEXT)[:-3], "(?i)ended before the end|truncated") for end, pack in MEMBERS.items()},
    **{f"cut.jsonl.{end}": (pack(ROWS) + pack(ROWS)[:9], "row [13]: ") for end, pack in MEMBERS.items()},
}


def texts(source: Path, **settings: str) -> list[str]:
    return [document.text for document in read_documents(source, **settings)]


@pytest.mark.parametrize("name", GOOD)
def test_a_file_gives_its_texts(name: str, tmp_path: Path) -> None:
    data, expected = GOOD[name]
    (tmp_path / name).write_bytes(data)
    assert texts(tmp_path / name) == expected


@pytest.mark.parametrize("name", BAD)
def test_a_fault_is_one_line_with_file_and_row(name: str, tmp_path: Path) -> None:
    data, message = BAD[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InherituneError, match=message) as caught:
        texts(tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_separator_and_the_field_are_the_users(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("one\n \ntwo\n---\nthree")
    assert texts(tmp_path / "x.txt", separator="\n---\n") == ["one\n \ntwo", "three"]
    with pytest.raises(InherituneError, match="separator of documents is empty"):
        texts(tmp_path / "x.txt", separator="")
    (tmp_path / "x.csv").write_text("text,body\nno,yes\n")
    assert texts(tmp_path / "x.csv", field="body") == ["yes"]


# -- folders ----------------------------------------------------------------------------------------------------------


def make(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


NULL = b'{"text": null}\n'
SPLITS = {
    f"data/{name}-00000-of-00001.jsonl": b'{"text": "%s"}' % name.encode() for name in ("train", "validation", "test")
}
OURS = {"s/manifest.json": b"{}", "s/tokenizer/tokenizer.json": b"{}", "r/identity.json": b"{}", "r/x.md": b"x"}
FOLDERS: dict[str, tuple[dict[str, bytes], list[str], str]] = {
    "hidden copies": (
        {"a.md": b"a", "._a.txt": b"\xff\0", ".ipynb_checkpoints/a-checkpoint.md": b"a", ".cache/b/c.jsonl": b"?"},
        ["a"],
        "",
    ),
    "not UTF-8": ({"a.md": b"a", "b.md": b"\xe9", "c.py": b"\xe9"}, ["a"], "files that are not UTF-8: 2 (first b.md)"),
    "nulls": ({"a.jsonl": NULL + ROWS, "b.jsonl": NULL}, BOTH, "null: 2 (first a.jsonl, row 1)"),
    "a data set of the hub": (
        SPLITS,
        ["train"],
        "files of a test or validation split: 2 (first data/test-00000-of-00001.jsonl)",
    ),
    "folders of splits": (
        {"train/0.txt": b"a", "dev/0.txt": b"b", "x.test.txt": b"c"},
        ["a"],
        "split: 2 (first dev/0.txt)",
    ),
    "a test split alone": ({"test.jsonl": ROWS}, BOTH, ""),
    "words that are no splits": (
        {"latest.txt": b"a", "contest/value.txt": b"b", "tests/test_x.py": b"c"},
        ["b", "a", "c"],
        "",
    ),
    "an empty file": ({"a.jsonl": b"", "b.jsonl": ROWS}, BOTH, ""),
    "other kinds": ({"a.md": b"a", "b.png": b"\x89"}, ["a"], "files of other kinds: 1 (first b.png)"),
    "what inheritune wrote": (
        {"a.md": b"a", **OURS},
        ["a"],
        "",
    ),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_gives_its_texts_and_says_what_it_leaves_out(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files, expected, left_out = FOLDERS[name]
    assert texts(make(tmp_path, files)) == expected
    said = capsys.readouterr().err
    assert left_out in said
    assert said.count("\n") == bool(left_out)


def test_links_are_read_or_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path, {"else/b.txt": b"b", "c/a.txt": b"a"})
    (tmp_path / "c" / "far").symlink_to(tmp_path / "else")
    (tmp_path / "c" / "b.txt").symlink_to(tmp_path / "else" / "b.txt")
    os.mkfifo(tmp_path / "c" / "pipe.txt")
    assert texts(tmp_path / "c") == ["a", "b"]
    assert "linked folders: 1 (first far)" in capsys.readouterr().err
    (tmp_path / "else" / "b.txt").unlink()
    with pytest.raises(InherituneError, match=r"cannot read .*b\.txt: .*No such file"):
        texts(tmp_path / "c")


def test_shards_inside_their_own_source_are_not_read_as_text(tmp_path: Path) -> None:
    make(tmp_path, {"a.txt": b"one\n\ntwo\n\nthree"})
    first = prepare(tmp_path, tmp_path / "tokens", "train:300")
    assert prepare(tmp_path, tmp_path / "more", "train:300").digest == first.digest
    assert prepare(tmp_path, tmp_path / "tokens", "train:300").digest == open_shards(tmp_path / "tokens").digest
    with pytest.raises(InherituneError, match="a folder that inheritune wrote"):
        texts(tmp_path / "tokens")


def test_a_name_that_is_not_utf_8_is_a_name(tmp_path: Path) -> None:
    source = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt"))
    source.write_bytes(TEXT)
    made = prepare(source, tmp_path / "out", "train:300")
    assert made.manifest.settings.source == str(tmp_path / "caf?.txt")
    assert prepare(source, tmp_path / "out", "train:300").digest == made.digest


# -- the hub ----------------------------------------------------------------------------------------------------------


def fails_at(row: int, error: Exception) -> Iterable[dict[str, str]]:
    yield from ({"text": str(i)} for i in range(row - 1))
    raise error


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (lambda: fails_at(3, EOFError()), r"of the hub, after row 2: EOFError"),
        (lambda: fails_at(2, RuntimeError("cast of 'meta'\ndetails")), r"after row 1: cast of 'meta'$"),
        (lambda: [{"text": "a"}, {"body": "b"}], r"after row 1: no field 'text', its fields are body"),
        (lambda: fails_at(1, ConnectionError("offline")), r"of the hub: offline"),
    ],
)
def test_a_fault_of_a_data_set_of_the_hub_is_one_line(
    rows: Callable[[], object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows())
    with pytest.raises(InherituneError, match=message):
        list(read_documents("hf:some/set"))


@pytest.mark.parametrize("name", ["hf:", "hf::", "hf: ", "hf:name:", "hf::config", "hf:a b", "hf:a:b:c"])
def test_a_name_of_no_data_set_is_one_line(name: str) -> None:
    with pytest.raises(DataError, match="names no data set of the hub: expected hf:NAME or hf:NAME:CONFIG"):
        read_documents(name)


def test_retries_of_the_hub_are_not_said(monkeypatch: pytest.MonkeyPatch) -> None:
    retries = huggingface_hub.logging.get_logger("huggingface_hub.utils._http")
    huggingface_hub.logging.set_verbosity_warning()
    assert retries.isEnabledFor(logging.WARNING)
    said: list[bool] = []
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *_, **__: said.append(retries.isEnabledFor(logging.WARNING)) or [{"text": "a"}]
    )
    assert texts("hf:some/set") == ["a"]
    assert said == [False]
