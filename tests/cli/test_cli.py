"""The command line as a user meets it: the commands end to end on a tiny model, every mistake in one line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

from inheritune.checkpoints import hub
from inheritune.cli.main import main
from inheritune.data import open_shards, train_tokenizer
from inheritune.decoder import save_model
from inheritune.recipes import library
from inheritune.records.base import read_record
from inheritune.records.runs import PlanRecord
from tiny import perturbed

TEXTS = [f"text {i}: " + " ".join(str((i * 89 + j * j * 31) % 97) for j in range(30 + i % 7)) for i in range(60)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a text and an encoder."""
    root = tmp_path_factory.mktemp("cli")
    (root / "text.txt").write_text("\n\n".join(TEXTS))
    (root / "short.txt").write_text("a\n\nb")
    (root / "empty").mkdir()
    tokenizer = train_tokenizer(TEXTS, 270)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=270, n_positions=32, n_embd=16, n_layer=4, n_head=2, bos_token_id=0, eos_token_id=0)
    save_model(perturbed(GPT2LMHeadModel(config)), root / "model", tokenizer)
    bert = BertConfig(vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
    save_model(BertForMaskedLM(bert), root / "bert")
    np.save(root / "windows.npy", np.random.default_rng(0).integers(0, 270, (5, 24)))
    np.save(root / "foreign.npy", np.full((5, 24), 270))
    return root


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run the command line in this process and return its exit status."""
    monkeypatch.setattr("sys.argv", ["inheritune", *map(str, arguments)])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_cut_evaluate_and_analyze(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "inherit", place / "model", "--layers", 2, "--out", tmp_path / "cut") == 0
    assert "0-1" in capsys.readouterr().out
    out = tmp_path / "evaluation.json"
    status = call(
        monkeypatch, "evaluate", tmp_path / "cut", "--data", place / "text.txt", "--against", place / "model",
        "--length", 16, "--out", out,
    )  # fmt: skip
    assert status == 0
    assert json.loads(out.read_text())["comparison"]["windows"] > 10
    status = call(monkeypatch, "analyze", tmp_path / "cut", "--tokens", place / "windows.npy", "--out", tmp_path / "a")
    assert status == 0
    spectra = json.loads((tmp_path / "a" / "spectra.json").read_text())
    assert [layer["index"] for layer in spectra["layers"]] == [0, 1]
    assert spectra["masks"] == ["causal", "full"]


def test_prepare_plan_run_and_report(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = tmp_path / "shards"
    assert call(monkeypatch, "prepare", place / "text.txt", "--tokenizer", place / "model", "--out", shards) == 0
    assert json.loads((shards / "manifest.json").read_text())["vocabulary"] == 270
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"name: heal\nmethod: inheritune\nreference: {place / 'model'}\nlayers: 2\n"
        f"data: {{source: {place / 'text.txt'}}}\n"
        "training: {steps: 4, batch: 2, length: 16, log_every: 2, valid_every: 2, checkpoint_every: 2}\n"
        "evaluation: {prompt: 'text '}\nanalysis: {sequences: 4, length: 16}\n"
    )
    assert call(monkeypatch, "plan", recipe) == 0
    planned = capsys.readouterr().out
    assert re.search(r"layers +parameters +tokens +time \(rough\)\n.*\nround 2: 0-3 of the reference +4 ", planned)
    assert call(monkeypatch, "run", recipe, "--set", "growth.max_rounds=1", "--out", tmp_path / "run") == 0
    printed = capsys.readouterr().out
    assert "round-1" in printed
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert f"{record['result']['evaluation']['loss']:.4f}" in printed
    assert call(monkeypatch, "report", tmp_path / "run", "--out", tmp_path / "report.html") == 0
    assert "heal" in (tmp_path / "report.html").read_text()


def test_the_shipped_recipes_are_listed_and_go_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "run", "--list") == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == list(library())
    assert call(monkeypatch, "plan", "distill", "--out", "plan.json") == 0
    printed = capsys.readouterr().out
    assert "minutes" in printed and "logits" in printed and "activations" in printed
    assert read_record(tmp_path / "plan.json", PlanRecord).method == "distill"
    assert call(monkeypatch, "plan", "inheritune", "--set", "training.steps=1000000") == 0
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first.startswith("note: at most 5 rounds")
    assert " days of training here" in " ".join([first, *_, last])


def test_a_result_is_uploaded_once_it_is_there(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked, pushed = [], []
    monkeypatch.setattr(hub, "check_push", asked.append)
    monkeypatch.setattr(hub, "push", lambda folder, name, private: pushed.append((folder, name, private)) or "URL")
    settings = [f"reference={place / 'model'}", f"data.source={place / 'text.txt'}", "layers=2", "training.steps=1"]
    settings += ["training.length=16", "training.batch=1", "analysis=null", "evaluation.speed=false"]
    options = [word for setting in settings for word in ("--set", setting)]
    out = tmp_path / "run"
    assert call(monkeypatch, "run", "heal", *options, "--out", out, "--push-to", "me/small", "--private") == 0
    assert (asked, pushed) == (["me/small"], [(out / "round-1" / "model", "me/small", True)])
    assert "uploaded: URL" in capsys.readouterr().out


def test_field_and_separator_wherever_data_are_taken(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = " ".join((place / "text.txt").read_text().split())
    rows, parts, model = tmp_path / "rows.jsonl", tmp_path / "parts.txt", place / "model"
    rows.write_text(json.dumps({"body": text[:800]}) + "\n" + json.dumps({"body": text[800:1600]}))
    parts.write_text(text[:800] + "#" + text[800:1600])
    read = (("--data", rows, "--field", "body"), ("--data", parts, "--separator", "#"))
    digests = []
    for i, options in enumerate(read):
        out = tmp_path / f"{i}.json"
        assert call(monkeypatch, "evaluate", model, *options, "--length", "16", "--out", out) == 0
        digests.append(json.loads(out.read_text())["data"]["windows_sha256"])
        size = ("--sequences", "2", "--length", "16", "--out", tmp_path / f"a{i}")
        assert call(monkeypatch, "analyze", model, *options, *size) == 0
        shards = tmp_path / f"s{i}"
        assert call(monkeypatch, "prepare", *options[1:], "--tokenizer", model, "--out", shards) == 0
    assert digests[0] == digests[1]
    assert open_shards(tmp_path / "s0").digest == open_shards(tmp_path / "s1").digest
    capsys.readouterr()
    assert call(monkeypatch, "evaluate", model, "--data", rows, "--out", tmp_path / "x.json") == 2
    assert "name one with --field" in capsys.readouterr().err


MISTAKES = {
    "no recipe": (["run"], "no recipe given: expected a YAML file or a name that inheritune run --list shows"),
    "an unknown recipe": (["run", "heel"], "no recipe heel: .*did you mean 'heal'"),
    "private without upload": (["run", "heal", "--private"], "--private is for an upload"),
    "a scale that is not there": (["reproduce", "table5", "--scale", "paper"], "unknown scale 'paper'"),
    "missing folder": (["analyze", "{p}/modl", "--out", "{t}/x"], "no folder .*modl.*did you mean .*model"),
    "empty folder": (["inherit", "{p}/empty", "--layers", "2", "--out", "{t}/x"], "no config.json in"),
    "an encoder": (["analyze", "{p}/bert", "--out", "{t}/x"], "not a decoder language model .BertForMaskedLM"),
    "too many layers": (["inherit", "{p}/model", "--layers", "5", "--out", "{t}/x"], "5 layers, the model has 4 .0-3."),
    "empty range": (["inherit", "{p}/model", "--layers", "2:2", "--out", "{t}/x"], "2:2"),
    "unknown part": (["inherit", "{p}/model", "--layers", "2", "--parts", "atention", "--out", "{t}/x"], "attention"),
    "T beyond the context": (
        ["analyze", "{p}/model", "--data", "{p}/text.txt", "--length", "33", "--out", "{t}/x"],
        "33.*32",
    ),
    "too little text": (
        ["evaluate", "{p}/model", "--data", "{p}/short.txt", "--length", "16", "--out", "{t}/x.json"],
        "expected at least 17, one window",
    ),
    "foreign tokens": (["analyze", "{p}/model", "--tokens", "{p}/foreign.npy", "--out", "{t}/x"], "270.*269|269.*270"),
    "no such text": (["prepare", "{p}/txt.txt", "--tokenizer", "{p}/model", "--out", "{t}/x"], "no text at"),
    "no such recipe": (["run", "{p}/recipe.yaml"], "no recipe"),
    "output held by another": (["inherit", "{p}/model", "--layers", "2", "--out", "{p}/model"], "model"),
    "unknown table": (["reproduce", "tabel5"], "unknown experiment 'tabel5'.*did you mean 'table5'"),
    "not a run": (["report", "{p}/empty", "--out", "{t}/r.html"], "empty"),
    "quickstart elsewhere": (["quickstart", "--out", "{p}/model"], "model"),
    "unknown option": (["inherit", "{p}/model", "--layer", "2"], "No such option:? .?--layer.*--layers"),
    "unknown command": (["analyse", "{p}/model"], "No such command 'analyse'.*analyze"),
    "no value in --set": (["quickstart", "--set", "training.steps"], "expected key=value"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_exit_status_2(
    mistake: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    template, message = MISTAKES[mistake]
    monkeypatch.chdir(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    assert call(monkeypatch, *(part.format(p=place, t=tmp_path) for part in template)) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert re.search(message, errors[0]), errors[0]
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before


EMPTY = {
    "report": ["report", ""],
    "report --out": ["report", "{p}/empty", "--out", ""],
    "report --figures": ["report", "{p}/empty", "--figures", ""],
    "analyze": ["analyze", "", "--out", "{t}/x"],
    "analyze --data": ["analyze", "{p}/model", "--data", "", "--out", "{t}/x"],
    "analyze --tokens": ["analyze", "{p}/model", "--tokens", "", "--out", "{t}/x"],
    "analyze --out": ["analyze", "{p}/model", "--tokens", "{p}/windows.npy", "--out", ""],
    "inherit": ["inherit", "", "--layers", "2", "--out", "{t}/x"],
    "inherit --grow-from": ["inherit", "{p}/model", "--grow-from", "", "--layers", "6", "--out", "{t}/x"],
    "inherit --revive": ["inherit", "{p}/model", "--layers", "2", "--revive", "", "--out", "{t}/x"],
    "inherit --out": ["inherit", "{p}/model", "--layers", "2", "--out", ""],
    "evaluate": ["evaluate", "", "--data", "{p}/text.txt"],
    "evaluate --data": ["evaluate", "{p}/model", "--data", ""],
    "evaluate --against": ["evaluate", "{p}/model", "--data", "{p}/text.txt", "--against", ""],
    "evaluate --out": ["evaluate", "{p}/model", "--data", "{p}/text.txt", "--out", ""],
    "prepare": ["prepare", "", "--tokenizer", "{p}/model", "--out", "{t}/x"],
    "prepare --tokenizer": ["prepare", "{p}/text.txt", "--tokenizer", "", "--out", "{t}/x"],
    "prepare --validation": ["prepare", "{p}/text.txt", "--tokenizer", "{p}/model", "--validation", "", "--out", "x"],
    "prepare --out": ["prepare", "{p}/text.txt", "--tokenizer", "{p}/model", "--out", ""],
    "plan": ["plan", ""],
    "plan --out": ["plan", "heal", "--out", ""],
    "run": ["run", ""],
    "run --out": ["run", "heal", "--out", ""],
    "quickstart --out": ["quickstart", "--out", ""],
    "reproduce --out": ["reproduce", "table5", "--out", ""],
}


@pytest.mark.parametrize("given", EMPTY)
def test_an_empty_path_is_not_the_current_folder(
    given: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, *(part.format(p=place, t=tmp_path) for part in EMPTY[given])) == 2
    name = given.partition(" ")[2] or "'?[A-Z]+'?"
    [error] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert re.fullmatch(f"error: Invalid value for '?{name}'?: an empty path: expected a file or a folder, .*", error)
    assert not list(tmp_path.iterdir())


def test_a_quoted_home_is_the_home(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "tokens.npy").write_bytes((place / "windows.npy").read_bytes())
    model = place / "model"
    assert call(monkeypatch, "inherit", model, "--layers", 2, "--out", "~/cut") == 0
    assert call(monkeypatch, "prepare", place / "text.txt", "--tokenizer", "~/cut", "--out", "~/shards") == 0
    assert call(monkeypatch, "evaluate", "~/cut", "--data", "~/tokens.npy", "--out", "~/evaluation.json") == 0
    assert call(monkeypatch, "analyze", "~/cut", "--tokens", "~/tokens.npy", "--out", "~/analysis") == 0
    assert call(monkeypatch, "report", "~/analysis", "--out", "~/report.html", "--figures", "~/figures") == 0
    assert call(monkeypatch, "plan", "distill", "--out", "~/plan.json") == 0
    names = {"cut", "shards", "tokens.npy", "evaluation.json", "analysis", "report.html", "figures", "plan.json"}
    assert {path.name for path in (tmp_path / "home").iterdir()} == names
    assert not list((tmp_path / "here").iterdir())


def test_a_mistake_is_refused_before_any_note(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ("--data", place / "text.txt", "--sequences", 500, "--length", 30, "--out", tmp_path / "x")
    assert call(monkeypatch, "analyze", place / "model", *small, "--tau", "2") == 2
    error = capsys.readouterr().err
    assert "overlap" not in error and "2" in error
    assert call(monkeypatch, "analyze", place / "model", *small) == 0
    assert "they overlap, each token is in about" in capsys.readouterr().err


def test_an_internal_fault_keeps_its_traceback(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("inheritune.spectra.flow.measure", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        call(monkeypatch, "analyze", place / "model", "--tokens", place / "windows.npy", "--out", place / "bug")


def test_ctrl_c_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("inheritune.experiments.quickstart", interrupted)
    assert call(monkeypatch, "quickstart") == 130
    assert "run the same command again" in capsys.readouterr().err
