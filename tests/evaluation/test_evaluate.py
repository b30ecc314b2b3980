"""One question about one or two models: the record, the command, and every mistake in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from transformers import AutoModelForCausalLM, BertConfig, BertModel, PreTrainedModel
from typer.testing import CliRunner

import inheritune as it
from inheritune.cli import evaluate as command
from inheritune.data import prepare, train_tokenizer, validation_windows
from inheritune.decoder import load_model, load_tokenizer, save_model
from inheritune.errors import DataError, InherituneError, ModelError, OutputError
from inheritune.evaluation import check_output, compare, evaluate, generation, window_losses
from inheritune.records.base import read_record
from inheritune.records.evaluation import EvaluationRecord, SpeedRatio

TEXT = "tinystories_sample.txt"


@pytest.fixture
def cut(stories: Path, tmp_path: Path) -> Path:
    """The first 3 of the 5 layers of the real model, made by transformers alone."""
    model = AutoModelForCausalLM.from_pretrained(stories, num_hidden_layers=3)
    save_model(model, tmp_path / "cut", load_tokenizer(stories))
    return tmp_path / "cut"


@pytest.fixture(autouse=True)
def few_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speeds are compared until enough time is spent; none is enough here."""
    monkeypatch.setattr(generation, "ENOUGH_SECONDS", 0.0)
    monkeypatch.setattr(generation, "FEWEST_TURNS", 2)


@pytest.fixture
def windows() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 97, (12, 33))


def test_record_of_two_models_on_an_array(
    tiny_gpt2: PreTrainedModel, tiny_llama: PreTrainedModel, windows: np.ndarray
) -> None:
    record = evaluate(tiny_gpt2, windows, against=tiny_llama, batch=4, margin=0.5)
    target, reference = window_losses(tiny_gpt2, windows, 4), window_losses(tiny_llama, windows, 4)
    assert record["evaluation"]["loss"] == target.mean()
    assert record["against"]["evaluation"]["loss"] == reference.mean()
    assert record["comparison"] == compare(target, reference, margin=0.5)
    assert (record["layers"], record["model"], record["against"]["model"]) == (4, "GPT2LMHeadModel", "LlamaForCausalLM")
    assert record["kind"] == record.as_json()["kind"] == "evaluate"
    assert evaluate(tiny_gpt2, torch.from_numpy(windows), batch=4)["data"] == record["data"]
    assert EvaluationRecord.model_validate(json.loads(json.dumps(record.as_json(), allow_nan=False))) == record


def test_record_of_one_model_from_a_file_of_windows(
    tiny_gpt2: PreTrainedModel, windows: np.ndarray, tmp_path: Path
) -> None:
    np.save(tmp_path / "windows.npy", windows.astype(np.int32))
    record = evaluate(tiny_gpt2, tmp_path / "windows.npy")
    assert record["against"] is None
    assert record["comparison"] is None
    assert record["evaluation"]["loss"] == window_losses(tiny_gpt2, windows).mean()
    assert record["data"]["windows_sha256"] == evaluate(tiny_gpt2, windows)["data"]["windows_sha256"]
    assert record["data"]["windows_sha256"] != evaluate(tiny_gpt2, windows[::-1])["data"]["windows_sha256"]


def test_length_and_number_cut_an_array(tiny_gpt2: PreTrainedModel, windows: np.ndarray) -> None:
    record = evaluate(tiny_gpt2, windows, length=20, windows=4)
    assert record["evaluation"]["loss"] == window_losses(tiny_gpt2, windows[[0, 3, 6, 9], :21]).mean()
    assert (record["evaluation"]["windows"], record["evaluation"]["tokens"]) == (4, 80)


def test_text_goes_through_the_models_own_tokenizer(stories: Path) -> None:
    record = evaluate(stories, stories / TEXT, length=100)
    windows = validation_windows(stories / TEXT, load_tokenizer(stories), 100, 256)
    assert record["evaluation"]["loss"] == window_losses(load_model(stories), windows).mean()
    assert record["evaluation"]["length"] == 100


def test_a_short_text_makes_shorter_windows_rather_than_few(stories: Path, tmp_path: Path) -> None:
    text = (stories / TEXT).read_text(encoding="utf-8")
    for repeats, length in ((1, 128), (4, 512)):
        source = tmp_path / f"{repeats}.txt"
        source.write_text(text * repeats, encoding="utf-8")
        shown = evaluate(stories, source)["evaluation"]
        assert (shown["length"], shown["windows"] >= 8) == (length, True)
    (tmp_path / "short.txt").write_text(text[:120], encoding="utf-8")
    with pytest.raises(DataError, match="expected at least 65, one window"):
        evaluate(stories, tmp_path / "short.txt")


def test_shards_give_their_validation_split(stories: Path, tmp_path: Path) -> None:
    shards = prepare(stories / TEXT, tmp_path / "shards", stories, separator="<|endoftext|>")
    tokens = shards.read("valid", 0, shards.tokens("valid"))
    record = evaluate(stories, tmp_path / "shards", length=64)
    count = (len(tokens) - 1) // 64
    windows = np.stack([tokens[64 * i : 64 * i + 65] for i in range(count)])
    assert record["evaluation"]["loss"] == window_losses(load_model(stories), windows).mean()


def test_a_model_matches_itself_and_a_raw_cut_does_not(stories: Path, cut: Path) -> None:
    same = evaluate(stories, stories / TEXT, against=stories)["comparison"]
    assert (same["difference"], same["ci_low"], same["ci_high"], same["matches"]) == (0, 0, 0, True)
    record = evaluate(cut, stories / TEXT, against=stories)
    assert record["comparison"]["difference"] > 0.5
    assert not record["comparison"]["matches"]
    assert (record["layers"], record["against"]["layers"]) == (3, 5)


def test_speed_is_measured_on_request(cut: Path, stories: Path, windows: np.ndarray) -> None:
    record = evaluate(cut, windows, against=stories, speed=True)
    assert record["speed"]["kv_cache_bytes_per_token"] == 3 * 2 * 4 * 8 * 4
    assert record["against"]["speed"]["kv_cache_bytes_per_token"] == 5 * 2 * 4 * 8 * 4
    assert record["speed"]["parameters"] == record["parameters"]
    ratio = record["speed_ratio"]
    assert 0 < ratio["ci_low"] <= ratio["ratio"] <= ratio["ci_high"]
    assert {record[name]["repeats"] for name in ("speed",)} == {record["against"]["speed"]["repeats"], ratio["turns"]}
    alone = evaluate(cut, windows, speed=True)
    assert (alone["speed"]["repeats"], alone["speed_ratio"]) == (3, None)
    assert evaluate(cut, windows)["speed"] is None


def test_a_run_and_evaluate_measure_the_same_pair_alike(stories: Path, tmp_path: Path) -> None:
    """Also where the reference is stored in another precision than float32, in which the run trains."""
    reference = tmp_path / "reference"
    save_model(load_model(stories, dtype="bfloat16"), reference, load_tokenizer(stories))
    run = it.run(
        {
            "name": "tiny", "method": "inheritune", "reference": str(reference), "layers": 2,
            "data": {"source": str(stories / TEXT), "valid_fraction": 0.2},
            "training": {"steps": 1, "batch": 1, "length": 16, "log_every": 1, "valid_every": 1, "checkpoint_every": 1},
            "growth": {"max_rounds": 1}, "analysis": None,
            "evaluation": {"windows": 2, "prompt": None, "confidence": 0.9},
        },
        tmp_path / "run",
    )  # fmt: skip
    evaluated = evaluate(tmp_path / "run", stories / TEXT, reference, length=16, windows=2, speed=True, confidence=0.9)
    conditions = ("dtype", "device", "threads", "batch", "prompt_length", "new_tokens", "parameter_bytes")
    for ours, theirs in ((run.result, evaluated), (run.reference, evaluated.against)):
        assert [ours.speed[name] for name in conditions] == [theirs.speed[name] for name in conditions]
        assert ours.speed.dtype == "bfloat16"
    assert run.result.speed_ratio.confidence == evaluated.speed_ratio.confidence == 0.9


def other_vocabulary(folder: Path, model: Any, size: int = 300) -> Path:
    save_model(model, folder, train_tokenizer(["some text to learn from " * 20], size))
    return folder


def test_models_of_two_vocabularies_are_refused(
    stories: Path, tiny_llama: PreTrainedModel, windows: np.ndarray, tmp_path: Path
) -> None:
    other = other_vocabulary(tmp_path / "other", tiny_llama)
    size = len(load_tokenizer(other).get_vocab())
    with pytest.raises(DataError, match=rf"vocabulary of 512 tokens, .*other one of {size} ") as caught:
        evaluate(stories, windows, against=other)
    assert "\n" not in str(caught.value)


def test_shards_of_another_vocabulary_are_refused(stories: Path, tmp_path: Path) -> None:
    prepare(stories / TEXT, tmp_path / "shards", "train:300", separator="<|endoftext|>")
    with pytest.raises(DataError, match=r"vocabulary of 512 tokens, .*shards one of 300"):
        evaluate(stories, tmp_path / "shards", length=64)


def test_text_without_a_tokenizer_is_refused(tiny_llama: PreTrainedModel, stories: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no tokenizer beside the model"):
        evaluate(tiny_llama, stories / TEXT)
    save_model(tiny_llama, tmp_path / "bare")
    with pytest.raises(DataError, match="no tokenizer beside the model"):
        evaluate(tmp_path / "bare", stories / TEXT)


def test_models_and_files_that_are_not_there(stories: Path, tmp_path: Path, windows: np.ndarray) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.npy").write_bytes(b"not an array")
    BertModel(
        BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    ).save_pretrained(tmp_path / "bert")
    cases: list[tuple[Any, Any, Any, type[InherituneError], str]] = [
        (tmp_path / "none", windows, None, ModelError, "no folder"),
        (tmp_path / "empty", windows, None, ModelError, "no config.json in"),
        (tmp_path / "bert", windows, None, ModelError, "not a decoder"),
        (stories, windows, tmp_path / "none", ModelError, "no folder"),
        (stories, tmp_path / "none.npy", None, DataError, "no file"),
        (stories, tmp_path / "bad.npy", None, DataError, "cannot read .*bad.npy as a NumPy array"),
        (stories, tmp_path / "none.txt", None, DataError, "no text at"),
        (stories, tmp_path / "empty", None, DataError, "empty"),
    ]
    for model, data, against, kind, message in cases:
        with pytest.raises(kind, match=message) as caught:
            evaluate(model, data, against)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length": 0}, "a length of 0: expected at least 1"),
        ({"length": 50}, "windows of 33 tokens: expected at least 51"),
        ({"windows": -1}, "a number of windows of -1: expected at least 1"),
        ({"batch": 0}, "a batch of 0 windows"),
    ],
)
def test_settings_out_of_range(
    tiny_gpt2: PreTrainedModel, windows: np.ndarray, settings: dict[str, int], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        evaluate(tiny_gpt2, windows, **settings)


def test_what_cannot_be_compared_is_said_before_anything_runs(
    tiny_gpt2: PreTrainedModel, tiny_llama: PreTrainedModel, windows: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    for model in (tiny_gpt2, tiny_llama):
        monkeypatch.setattr(model, "forward", lambda *_, **__: pytest.fail("a model was run"))
    long = np.zeros((3, 66), dtype=np.int64)
    for data, settings, message in (
        (windows[:1], {}, r"too few windows \(1\)"),
        (windows, {"margin": -1.0}, "a margin of -1.0 nats"),
        (windows, {"confidence": 1.0}, "a confidence of 1.0"),
        (windows + 90, {}, r"token \d+ in window \d+: expected 0 to 96"),
        (long, {}, "windows of 65 input tokens: expected at most the model's context, 64"),
    ):
        with pytest.raises(DataError, match=message):
            evaluate(tiny_gpt2, data, tiny_llama, **settings)


def test_length_beyond_the_context_of_text(stories: Path) -> None:
    with pytest.raises(DataError, match="windows of 600 input tokens: expected at most the model's context, 512"):
        evaluate(stories, stories / TEXT, length=600)


def run_command(*arguments: object) -> Any:
    app = typer.Typer()
    app.command()(command.evaluate)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_command_prints_and_writes_the_record(stories: Path, cut: Path, tmp_path: Path) -> None:
    out = tmp_path / "sub" / "result.json"
    ask = (cut, "--data", stories / TEXT, "--against", stories, "--speed", "--length", 64, "--out", out)
    result = run_command(*ask)
    assert result.exit_code == 0, result.output
    record = json.loads(out.read_text())
    assert record["settings"]["length"] == 64
    for shown in (
        f"{record['evaluation']['loss']:.4f}",
        f"{record['comparison']['difference']:+.4f}",
        "does not match",
    ):
        assert shown in result.output
    assert f"{record['against']['speed']['kv_cache_bytes_per_token']:,.0f} B" in result.output
    assert (
        f"generates {record['speed_ratio']['ratio']:.2f} times as fast as the reference (95% interval" in result.output
    )
    used = f"float32, {torch.get_num_threads()} thread"
    assert f"({used}" in result.output and f"in alternation; {used}" in result.output
    assert read_record(out, EvaluationRecord).speed_ratio == SpeedRatio(**record["speed_ratio"])
    assert run_command(*ask).exit_code == 0, "the same question again replaces its own record"


def test_command_overwrites_nothing_else(stories: Path, cut: Path, tmp_path: Path) -> None:
    out = tmp_path / "evaluation.json"
    assert run_command(stories, "--data", stories / TEXT, "--out", out).exit_code == 0
    held = out.read_bytes()
    other = run_command(cut, "--data", stories / TEXT, "--out", out)
    assert isinstance(other.exception, OutputError)
    assert "holds the evaluation of" in str(other.exception)
    assert out.read_bytes() == held
    for content in ("some notes", '{"kind": "run"}', "[1, 2]", "", json.dumps({**json.loads(held), "data": 3})):
        out.write_text(content)
        foreign = run_command(stories, "--data", stories / TEXT, "--out", out)
        assert isinstance(foreign.exception, OutputError)
        assert "is no record of an evaluation" in str(foreign.exception)
        assert out.read_text() == content
    folder = run_command(stories, "--data", stories / TEXT, "--out", tmp_path)
    assert isinstance(folder.exception, OutputError)
    assert "exists and is no record of an evaluation" in str(folder.exception)


def test_command_module_imports_nothing_heavy() -> None:
    code = "import sys, inheritune.cli.evaluate; print({'torch', 'transformers', 'scipy', 'rich'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.strip()
    assert "torch" not in loaded
    assert "transformers" not in loaded
    assert "scipy" not in loaded


def test_a_record_of_version_0_1_stays_readable(tmp_path: Path) -> None:
    """`evaluate --against --speed` of version 0.1 wrote the file."""
    path = Path(__file__).parents[1] / "records" / "v01" / "evaluation.json"
    written = json.loads(path.read_text())
    record = read_record(path, EvaluationRecord)
    held = record.as_json()
    for part in (held, held["against"]):
        assert part.pop("identity") is None
        assert part["speed"].pop("dtype") is None
        assert part.pop("tasks") is None
        assert part["evaluation"].pop("clusters") is None
    assert held["comparison"].pop("clusters") is held["comparison"].pop("freedom") is None
    assert held.pop("speed_ratio") is None
    assert held == written
    check_output(path, record.model, record.data.source, written["against"]["model"])
