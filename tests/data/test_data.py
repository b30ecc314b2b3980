"""Sources, tokenizers and shards against what a person would compute by hand."""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from corpus_texts import TEXTS
from transformers import PreTrainedTokenizerFast

from inheritune.data import (
    Document,
    Shards,
    open_shards,
    prepare,
    read_documents,
    train_tokenizer,
)
from inheritune.data import shards as shards_module
from inheritune.data.tokenizer import encode, vocabulary_size
from inheritune.decoder import load_tokenizer
from inheritune.errors import DataError, ModelError, OutputError
from inheritune.records.runs import Manifest
from inheritune.storage import whole_folder
from mounting import mounted


def keys(documents: object) -> list[str]:
    return [document.key for document in documents]  # type: ignore[attr-defined]


# -- sources --------------------------------------------------------------------------------------------------------


def test_text_is_split_at_blank_lines_whatever_the_packing(corpus: Path, tmp_path: Path) -> None:
    packed = tmp_path / "corpus.txt.xz"
    packed.write_bytes(lzma.compress(corpus.read_bytes()))
    assert [d.text for d in read_documents(corpus)] == TEXTS
    assert [d.text for d in read_documents(packed)] == TEXTS


def test_a_separator_across_two_pieces_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    first = "a" * ((1 << 20) - 1)  # the piece ends between the two line ends
    path.write_text(first + "\n\nsecond")
    assert [len(d.text) for d in read_documents(path)] == [len(first), 6]


def test_an_end_of_text_mark_goes_before_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "stories.txt"
    path.write_text("\nOne.\n\nStill one.\n<|endoftext|>\nTwo.\n<|endoftext|>\n")
    assert [d.text for d in read_documents(path)] == ["One.\n\nStill one.", "Two."]


def test_json_lines_and_parquet_give_their_field(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"body": text, "n": i} for i, text in enumerate(TEXTS)]
    lines = tmp_path / "rows.jsonl.gz"
    lines.write_bytes(gzip.compress("\n".join(json.dumps(row) for row in rows).encode()))
    table = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), table)
    assert [d.text for d in read_documents(lines, field="body")] == TEXTS
    assert [d.text for d in read_documents(table, field="body")] == TEXTS
    with pytest.raises(DataError, match=r"row 1: no field 'bodi', its fields are body, n: .*did you mean 'body'"):
        list(read_documents(lines, field="bodi"))


def test_a_folder_gives_its_files_in_order_keyed_by_path(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.py").write_text("print(1)")
    (tmp_path / "a.md").write_text("# title")
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    assert keys(read_documents(tmp_path)) == ["a.md", "b/x.py"]


def test_the_standard_library_is_there_without_what_users_installed() -> None:
    found = keys(read_documents("stdlib"))
    assert {"ast.py", "json/decoder.py", "asyncio/tasks.py"} <= set(found)
    assert not [key for key in found if "site-packages" in key]
    assert found == sorted(found, key=lambda key: Path(key))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("stdlb", "no text at stdlb: .*; did you mean 'stdlib'"),
        ("/nowhere/x.txt", "no text at /nowhere/x.txt: expected a file, a folder, 'stdlib' or 'hf:NAME'"),
        ("a text itself " * 300, "cannot use 'a text itself .*: File name too long"),
        ("~no-such-user/x.txt", "cannot use '~no-such-user/x.txt' as a path"),
    ],
)
def test_an_unknown_source_is_one_line(name: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        list(read_documents(name))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_text_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(b"\xff\xfe\x00bad")
    with pytest.raises(DataError, match=r"cannot read .*x\.txt: line 1 is not UTF-8"):
        list(read_documents(path))
    other = tmp_path / "x.pdf"
    other.write_bytes(b"%PDF")
    with pytest.raises(DataError, match=r"no known kind: expected .txt"):
        list(read_documents(other))


# -- splitting and tokens -------------------------------------------------------------------------------------------


def test_documents_are_split_by_the_hash_of_their_key(shards: Shards) -> None:
    def position(text: str) -> float:
        return int(hashlib.sha256(text.encode()).hexdigest()[:16], 16) / 2**64

    expected = sum(position(text) < 0.2 for text in TEXTS)
    assert 0 < expected < 20
    assert shards.manifest["splits"]["valid"]["documents"] == expected
    assert shards.manifest["splits"]["train"]["documents"] == len(TEXTS) - expected


def test_the_tokens_are_the_documents_each_ended_by_the_end_of_text(shards: Shards) -> None:
    tokenizer = load_tokenizer(shards.tokenizer)
    text = tokenizer.decode(shards.read("train", 0, shards.tokens("train")))
    written = text.split("<|endoftext|>")
    assert written.pop() == ""
    assert written == [t for t in TEXTS if Document(t, t).position() >= 0.2]


def test_shards_are_plain_little_endian_arrays(shards: Shards) -> None:
    """What nanoGPT's own reader does: memmap a file as uint16."""
    raw = np.fromfile(shards.folder / "train-00000.bin", dtype="<u2")
    np.testing.assert_array_equal(raw, shards.read("train", 0, shards.tokens("train")))
    assert shards.manifest["dtype"] == "<u2"
    assert shards_module.token_dtype(65536) == np.dtype("<u2")
    assert shards_module.token_dtype(65537) == np.dtype("<u4")


def test_reading_crosses_shards(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: Shards) -> None:
    monkeypatch.setattr(shards_module, "SHARD_TOKENS", 100)
    many = prepare(corpus, tmp_path / "many", "train:300", valid_fraction=0.2)
    assert len(many.manifest["splits"]["train"]["shards"]) > 3
    whole = shards.read("train", 0, shards.tokens("train"))
    np.testing.assert_array_equal(many.read("train", 0, many.tokens("train")), whole)
    np.testing.assert_array_equal(many.read("train", 95, 230), whole[95:325])


def test_any_bytes_survive_the_tokenizer() -> None:
    tokenizer = train_tokenizer(TEXTS, 300)
    text = "naïve\u2028 \x00\x7f 🐍 \ttabs"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert (len(tokenizer), tokenizer.eos_token_id) == (300, 0)


def test_a_tokenizer_that_marks_bounds_itself_is_left_to_it(stories: Path) -> None:
    llama = load_tokenizer(stories)
    (ids,) = encode(["Once upon a time"], llama)
    assert ids[0] == llama.bos_token_id
    assert llama.eos_token_id not in ids
    (ids,) = encode(["Once"], train_tokenizer(TEXTS, 300))
    assert ids[-1] == 0
    assert 0 not in ids[:-1]


def test_prepare_again_reuses_and_refuses_other_settings(corpus: Path, shards: Shards) -> None:
    before = (shards.folder / "train-00000.bin").stat().st_mtime_ns
    again = prepare(corpus, shards.folder, "train:300", valid_fraction=0.2)
    assert (again.folder / "train-00000.bin").stat().st_mtime_ns == before
    with pytest.raises(OutputError, match=r"holds other shards \(its valid_fraction is 0.2, yours is 0.3\)"):
        prepare(corpus, shards.folder, "train:300", valid_fraction=0.3)


def test_a_tokenizer_that_has_only_moved_is_the_same(corpus: Path, shards: Shards, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(shards.tokenizer, copy)
    held = prepare(corpus, tmp_path / "held", shards.tokenizer)
    assert prepare(corpus, held.folder, copy).digest == held.digest
    train_tokenizer(TEXTS, 301).save_pretrained(copy)
    with pytest.raises(OutputError, match="its tokenizer is"):
        prepare(corpus, held.folder, copy)


def test_a_refusal_does_not_say_that_the_shards_are_used(
    corpus: Path, shards: Shards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(OutputError, match=r"holds other shards \(its source is .*yours is .*empty"):
        prepare(tmp_path / "empty", shards.folder, "train:300", valid_fraction=0.2)
    assert "used as they are" not in capsys.readouterr().err


def test_a_preparation_that_fails_leaves_no_folder_above_it(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        prepare(tmp_path / "nothing.txt", tmp_path / "new" / "folder" / "data", "train:300")
    assert not (tmp_path / "new").exists()


def test_what_a_killed_preparation_left_is_cleared(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left = tmp_path / ".new.0123456789ab.tmp"
    left.mkdir()
    (left / "train-00000.bin").write_bytes(b"half")
    prepare(corpus, tmp_path / "new", "train:300")
    assert not left.exists()
    assert f"removing {left}, which a command that was killed left behind" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["8k", "36k"], ids=["tokenizer", "shards"])
def test_a_full_disk_is_one_line(size: str, corpus: Path, shards: Shards, tmp_path: Path) -> None:
    corpus.write_text("\n\n".join(TEXTS * 10))
    with mounted(tmp_path / "disk", f"size={size}") as disk:
        with pytest.raises(OutputError, match=r"^cannot write .*new: No space left on device$"):
            prepare(corpus, disk / "new", shards.tokenizer)
        assert not [*disk.iterdir()]


def test_prepare_never_touches_a_folder_of_something_else(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match="holds something else"):
        prepare(corpus, tmp_path / "mine", "train:300")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"


def test_an_interrupted_preparation_leaves_nothing(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Manifest, "write", fail)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        prepare(corpus, tmp_path / "new", "train:300")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("tokenizer", "error", "message"),
    [
        ("train:many", DataError, "expected a number behind 'train:'"),
        ("train:100", DataError, "vocabulary of 100 tokens: expected 257 to"),
        ("/nowhere", ModelError, "no folder /nowhere"),
    ],
)
def test_a_wrong_tokenizer_is_one_line(
    corpus: Path, tmp_path: Path, tokenizer: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        prepare(corpus, tmp_path / "x", tokenizer)
    assert not (tmp_path / "x").exists()


def test_a_single_document_cannot_be_split(tmp_path: Path) -> None:
    path = tmp_path / "one.txt"
    path.write_text("only one")
    with pytest.raises(DataError, match="single document and cannot be split: name a validation source"):
        prepare(path, tmp_path / "x", "train:300")
    both = prepare(path, tmp_path / "y", "train:300", validation=path)
    assert both.tokens("train") == both.tokens("valid")


def test_two_documents_give_one_to_each_split(tmp_path: Path) -> None:
    path = tmp_path / "two.txt"
    path.write_text("first\n\nsecond")
    splits = prepare(path, tmp_path / "x", "train:300").manifest["splits"]
    assert (splits["train"]["documents"], splits["valid"]["documents"]) == (1, 1)


def test_a_shard_cut_short_is_refused(shards: Shards) -> None:
    path = shards.folder / "valid-00000.bin"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(DataError, match=r"valid-00000\.bin is missing or cut short"):
        open_shards(shards.folder)


# -- shards and what they were made of --------------------------------------------------------------------------------

V01 = Path(__file__).parent / "v01"
"""A source and its shards as version 0.1 wrote them."""


def test_shards_of_version_0_1_are_read_and_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(V01, tmp_path / "v01")
    monkeypatch.chdir(tmp_path / "v01")
    held = open_shards("shards")
    assert (held.vocabulary, held.tokens("train"), held.tokens("valid")) == (260, 301, 145)
    assert load_tokenizer(held.tokenizer).decode(held.read("valid", 0, 20)).startswith("document ")
    assert prepare("corpus.txt", "shards", "train:260", valid_fraction=0.2).digest == held.digest
    assert prepare("corpus.txt", "again", "train:260", valid_fraction=0.2).digest == held.digest


def change(corpus: Path) -> None:
    corpus.write_text(corpus.read_text() + "\n\none more")


def exchange(corpus: Path) -> None:
    corpus.write_text(corpus.read_text().replace("document 7", "document 8"))


@pytest.mark.parametrize(("happens", "message"), [(change, r"source\.bytes is \d+"), (exchange, r"source\.sha256 is")])
def test_shards_of_a_source_that_has_changed_are_not_reused(
    happens: Callable[[Path], None], message: str, corpus: Path, shards: Shards
) -> None:
    happens(corpus)
    with pytest.raises(OutputError, match=f"its {message}.*, yours is .*or delete it") as caught:
        prepare(corpus, shards.folder, "train:300", valid_fraction=0.2)
    assert "\n" not in str(caught.value)


def test_another_file_of_the_same_relative_name_is_another_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, count in (("a", 20), ("b", 30)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "t.txt").write_text("\n\n".join(TEXTS[:count]))
    monkeypatch.chdir(tmp_path / "a")
    prepare("t.txt", tmp_path / "shards", "train:300")
    monkeypatch.chdir(tmp_path / "b")
    with pytest.raises(OutputError, match=r"its source\.bytes is \d+, yours is \d+"):
        prepare("t.txt", tmp_path / "shards", "train:300")


def test_a_source_that_has_only_moved_or_is_gone_is_the_same(
    corpus: Path, shards: Shards, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = corpus.rename(corpus.with_name("moved.txt"))
    assert prepare(moved, shards.folder, "train:300", valid_fraction=0.2).digest == shards.digest
    assert prepare(corpus, shards.folder, "train:300", valid_fraction=0.2).digest == shards.digest
    assert f"no text at {corpus}" in capsys.readouterr().err


def test_the_digest_of_a_file_is_its_sha256(corpus: Path, shards: Shards) -> None:
    content = shards.manifest.sources["source"]
    data = corpus.read_bytes()
    assert (content.files, content.bytes, content.sha256) == (1, len(data), hashlib.sha256(data).hexdigest())


def test_a_tokenizer_of_the_same_name_that_has_changed_is_another(corpus: Path, tmp_path: Path) -> None:
    train_tokenizer(TEXTS, 300).save_pretrained(tmp_path / "t")
    prepare(corpus, tmp_path / "out", tmp_path / "t")
    train_tokenizer(TEXTS[:3], 290).save_pretrained(tmp_path / "t")
    with pytest.raises(OutputError, match=r"its tokenizer is .*t\", yours is .*t with other content\""):
        prepare(corpus, tmp_path / "out", tmp_path / "t")
    shutil.rmtree(tmp_path / "t")
    prepare(corpus, tmp_path / "out", tmp_path / "t")  # it is gone: the shards have a copy


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"kind": "run"}', '{"schema": 9}', '{"dtype": "<u2"}'])
def test_a_damaged_manifest_is_one_line(damage: str, shards: Shards, corpus: Path) -> None:
    (shards.folder / "manifest.json").write_text(damage)
    for use in (open_shards, lambda folder: prepare(corpus, folder, "train:300", valid_fraction=0.2)):
        with pytest.raises(OutputError, match=r"manifest\.json") as caught:
            use(shards.folder)
        assert "\n" not in str(caught.value)


def word_tokenizer(ids: dict[str, int]) -> PreTrainedTokenizerFast:
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="[UNK]"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=model, unk_token="[UNK]", eos_token="[END]")


def test_ids_with_gaps_beyond_uint16_do_not_wrap(tmp_path: Path) -> None:
    """Five tokens whose largest id is 70,000: `len` says 5, and 70,000 in uint16 would be 4,464."""
    tokenizer = word_tokenizer({"[UNK]": 0, "[END]": 1, "cat": 2, "dog": 70000, "red": 65535})
    assert len(tokenizer) == 5
    tokenizer.save_pretrained(tmp_path / "t")
    (tmp_path / "x.txt").write_text("red cat\n\ndog red")
    shards = prepare(tmp_path / "x.txt", tmp_path / "out", tmp_path / "t", validation=tmp_path / "x.txt")
    assert shards.read("train", 0, 6).tolist() == [65535, 2, 1, 70000, 65535, 1]
    assert (shards.vocabulary, shards.manifest.dtype) == (70001, "<u4")


def test_a_token_that_was_added_to_the_vocabulary_counts() -> None:
    tokenizer = word_tokenizer({"[UNK]": 0, "[END]": 1, "cat": 2})
    assert vocabulary_size(tokenizer) == 3
    tokenizer.add_tokens(["<extra>"])
    assert vocabulary_size(tokenizer) == 4
    assert [part.tolist() for part in encode(["cat <extra>"], tokenizer)] == [[2, 3, 1]]


def test_an_id_beyond_the_dtype_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gave ids 3 to 65536: expected 0 to 65535"):
        shards_module.write_split(tmp_path, "train", [np.array([3, 65536])], np.dtype("<u2"))


def test_a_text_that_a_tokenizer_cannot_encode_is_one_line() -> None:
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[END]": 0, "cat": 1}, unk_token="[UNK]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, eos_token="[END]")
    with pytest.raises(DataError, match=r"the tokenizer cannot encode the text: .*UNK"):
        list(encode(["dog"], tokenizer))


def test_a_second_preparation_waits_for_the_first_and_reuses_it(
    corpus: Path, shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other process is in `whole_folder`, which holds the same lock, and ends while this one waits."""
    out = tmp_path / "both"
    other = whole_folder(out)
    temporary = other.__enter__()

    def end(_: float) -> None:
        shutil.copytree(shards.folder, temporary, dirs_exist_ok=True)
        other.__exit__(None, None, None)

    monkeypatch.setattr(time, "sleep", end)
    assert prepare(corpus, out, "train:300", valid_fraction=0.2).digest == shards.digest
    assert f"another process is preparing {out}" in capsys.readouterr().err


def test_of_two_preparations_of_one_moment_the_later_reuses_or_is_refused(
    corpus: Path, shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sys.modules["inheritune.data.prepare"], "read_documents", lambda *a: meanwhile() or documents(*a)
    )
    documents, out = read_documents, tmp_path / "both"

    def meanwhile() -> None:
        shutil.copytree(shards.folder, out, dirs_exist_ok=True)

    assert prepare(corpus, out, "train:300", valid_fraction=0.2).digest == shards.digest
    shutil.rmtree(out)
    with pytest.raises(OutputError, match='its tokenizer is "train:300", yours is "train:301"'):
        prepare(corpus, out, "train:301", valid_fraction=0.2)
    assert open_shards(out).digest == shards.digest
