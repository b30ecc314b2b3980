"""What a user may call MODEL: a folder, a run, the shipped model; what else there is gets one line with the way out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import inheritune.surgery as surgery
from inheritune.decoder import load_config, load_model, load_tokenizer
from inheritune.decoder.source import model_identity, resolve_model
from inheritune.decoder.view import on_accelerator
from inheritune.errors import InherituneError, ModelError
from tiny import make_gpt2, make_llama

EVALUATION = {"loss": 1.0, "windows": 1, "length": 8, "tokens": 8, "data": "a text"}


def make_run(folder: Path, layers: int = 2) -> Path:
    """Write what a run leaves behind, as far as a later command reads it."""
    make_llama(layers).save_pretrained(folder / "round-0" / "model")
    (folder / "round-0" / "round.json").write_text("{}")
    (folder / "identity.json").write_text('{"kind": "run"}')
    result = {"model": "round-0/model", "layers": layers, "parameters": 1, "tokens": 8, "evaluation": EVALUATION}
    record = {"kind": "run", "schema": 1, "name": "r", "method": "scratch", "recipe": {}, "seed": 0, "rounds": []}
    (folder / "record.json").write_text(json.dumps(record | {"result": result}))
    return folder


def test_a_finished_run_is_the_model_it_ended_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in (run, str(run), "run", "run/", "./run", "~/run"):
        assert load_config(name).num_hidden_layers == 2
    state = load_file(run / "round-0" / "model" / "model.safetensors")
    assert torch.equal(load_model("run").state_dict()["model.norm.weight"], state["model.norm.weight"])
    surgery.inherit_checkpoint("run", tmp_path / "cut", 1)
    assert load_config(tmp_path / "cut").num_hidden_layers == 1


def test_stdlib_is_the_shipped_model_everywhere(tmp_path: Path) -> None:
    config = load_config("stdlib")
    assert load_model("stdlib").config.num_hidden_layers == config.num_hidden_layers
    assert len(load_tokenizer("stdlib")) == config.vocab_size
    assert surgery.inherit("stdlib", 1).config.num_hidden_layers == 1
    surgery.inherit_checkpoint("stdlib", tmp_path / "cut", 1)
    assert load_config(tmp_path / "cut").num_hidden_layers == 1


def other_folders(root: Path) -> dict[str, tuple[Path, str]]:
    """Make folders that inheritune writes and that are no models; return what the line has to say of each."""
    run = make_run(root / "run")
    gone = make_run(root / "gone")
    shutil.rmtree(gone / "round-0")
    unfinished = make_run(root / "unfinished")
    (unfinished / "record.json").unlink()
    damaged = make_run(root / "damaged")
    (damaged / "record.json").write_text('{"kind": "run", "schema": 1}')
    analysis, shards, table = root / "analysis", root / "shards", root / "table"
    for folder in (analysis, shards, table, root / "begun"):
        folder.mkdir()
    (analysis / "spectra.json").write_text('{"kind": "analysis", "model": "them/one"}')
    (shards / "manifest.json").write_text("{}")
    make_run(table / "a")
    (table / "record.json").write_text('{"kind": "reproduce"}')
    (root / "begun" / "identity.json").write_text('{"kind": "quickstart"}')
    (root / "notes").mkdir()
    (root / "notes" / "notes.txt").write_text("")
    return {
        "round": (run / "round-0", r"round-0 is a round of a run, not a model: pass .*round-0/model$"),
        "unfinished": (unfinished, r"is an unfinished run, not a model: pass .*round-0/model$"),
        "begun": (root / "begun", r"is an unfinished quickstart, not a model: expected a model .*stdlib-small$"),
        "gone": (gone, r"gone is a run whose result is gone, not a model: expected a model folder"),
        "damaged": (damaged, r"record\.json is damaged or was changed by hand \(name.*run the recipe again$"),
        "analysis": (analysis, r"analysis is an analysis, not a model: pass them/one$"),
        "shards": (shards, r"shards is a folder of token shards, not a model: expected a model folder"),
        "table": (table, r"table is a folder of 'reproduce', not a model: pass .*a/round-0/model$"),
        "notes": (root / "notes", r"^no config\.json in .*notes: expected a model in Hugging Face format$"),
    }


@pytest.mark.parametrize(
    "case", ["round", "unfinished", "begun", "gone", "damaged", "analysis", "shards", "table", "notes"]
)
def test_other_folders_are_one_line_with_the_nearest_model(case: str, tmp_path: Path) -> None:
    folder, line = other_folders(tmp_path)[case]
    for attempt in (load_config, load_model, lambda name: surgery.inherit_checkpoint(name, tmp_path / "out", 1)):
        with pytest.raises(InherituneError, match=line) as caught:
            attempt(folder)
        assert "\n" not in str(caught.value)
    assert model_identity(folder) is None


def test_a_mistyped_stdlib_is_put_right() -> None:
    with pytest.raises(ModelError, match=r"no folder ./sdtlib: expected .*; did you mean 'stdlib'\?$"):
        load_config("./sdtlib")


@pytest.mark.parametrize("name", ["a" * 5000, "a" * 5000 + "/b", "a" * 5000 + ".json", "~nobody-of-this-name/m"])
def test_a_name_that_can_be_no_path_is_one_line(name: str, tmp_path: Path) -> None:
    inherit = lambda source: surgery.inherit_checkpoint(source, tmp_path / "out", 1)  # noqa: E731 - one of four
    for attempt in (load_config, load_model, load_tokenizer, inherit):
        for source in (name, Path(name)):
            with pytest.raises(ModelError, match=r"^cannot use '.{1,80}' as a path: ") as caught:
                attempt(source)
            assert len(str(caught.value)) < 200
    assert model_identity(name) is None


def test_a_model_is_known_by_what_it_is_not_by_where_it_lies(tmp_path: Path) -> None:
    make_gpt2().save_pretrained(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    identity = model_identity(tmp_path / "one")
    assert identity is not None and identity == model_identity(f"{tmp_path}/two/")
    config = json.loads((tmp_path / "two" / "config.json").read_text())
    (tmp_path / "two" / "config.json").write_text(json.dumps(config | {"_name_or_path": "x"}, indent=7))
    assert model_identity(tmp_path / "two") == identity
    make_gpt2().save_pretrained(tmp_path / "sharded", max_shard_size="50KB")
    assert model_identity(tmp_path / "sharded") == identity

    others = {"config": make_gpt2(), "trained": make_gpt2(seed=1), "deeper": make_gpt2(5)}
    for name, model in others.items():
        model.save_pretrained(tmp_path / name)
    (tmp_path / "config" / "config.json").write_text(json.dumps(config | {"layer_norm_epsilon": 0.5}))
    identities = {name: model_identity(tmp_path / name) for name in others}
    assert len({identity, *identities.values()}) == 4 and None not in identities.values()

    state = load_file(tmp_path / "one" / "model.safetensors")
    (tmp_path / "two" / "model.safetensors").unlink()
    torch.save(state, tmp_path / "two" / "pytorch_model.bin")
    assert model_identity(tmp_path / "two") == identity
    save_file({name: value.half() for name, value in state.items()}, tmp_path / "one" / "model.safetensors")
    assert model_identity(tmp_path / "one") not in (None, identity)


def test_the_identity_of_stdlib_is_that_of_its_folder() -> None:
    assert model_identity("stdlib") == model_identity(resolve_model("stdlib")) is not None
    assert model_identity("nobody/never-downloaded") is None


def test_a_model_that_does_not_fit_the_accelerator_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_gpt2(1)

    def refuse(device: torch.device | str) -> None:
        if str(device) != "cpu":
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate ...")

    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(model, "to", refuse)
    with pytest.raises(ModelError, match=r"^the model needs 0\.0 GB, more than is free on the accelerator \(cuda\): "):
        on_accelerator(model)
