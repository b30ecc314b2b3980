"""`inheritune inherit`: prints the plan, writes a loadable folder and a record, refuses in one line."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
import typer
from surgery_families import assert_same_weights, logits
from transformers import AutoModelForCausalLM, PreTrainedModel
from typer.testing import CliRunner, Result

import inheritune.surgery as surgery
from inheritune.checkpoints import hub
from inheritune.cli import inherit as command
from inheritune.decoder import count_parameters
from inheritune.decoder.source import model_identity
from inheritune.errors import InherituneError, ModelError, OutputError, PlanError
from inheritune.records.analysis import AnalysisRecord, LayerAnalysis, LayerMeasures
from inheritune.records.base import read_record
from inheritune.records.surgery import SurgeryRecord
from inheritune.spectra.folder import save_spectra
from inheritune.spectra.recommend import Recommendation
from inheritune.spectra.result import Spectra
from inheritune.surgery import LayerPlan
from tiny import make_gpt2, make_llama, perturbed


def call(*arguments: object) -> Result:
    app = typer.Typer()
    app.callback()(lambda: None)
    app.command()(command.inherit)
    words = ["inherit", *map(str, arguments)]
    with patch.object(sys, "argv", ["/bin/inheritune", *words]):
        return CliRunner().invoke(app, words)


def refusal(*arguments: object) -> InherituneError:
    result = call(*arguments)
    assert isinstance(result.exception, InherituneError), result.output
    assert "\n" not in str(result.exception)
    return result.exception


@pytest.fixture
def folder(tiny_llama: PreTrainedModel, tmp_path: Path) -> Path:
    tiny_llama.save_pretrained(tmp_path / "source")
    return tmp_path / "source"


@pytest.mark.parametrize("parts", ["all", "attention,norms"])
def test_writes_model_and_record(folder: Path, tmp_path: Path, tiny_llama: PreTrainedModel, parts: str) -> None:
    out = tmp_path / "new" / "out"
    result = call(folder, "--layers", "0,2", "--parts", parts, "--seed", 3, "--out", out)
    assert result.exit_code == 0, result.output
    plan = LayerPlan.from_layers([0, 2], 4, parts)
    assert result.stdout.startswith(str(plan))

    new = AutoModelForCausalLM.from_pretrained(out)
    assert_same_weights(new.state_dict(), surgery.inherit(tiny_llama, [0, 2], parts, seed=3).state_dict())
    sizes = {"before": count_parameters(tiny_llama), "after": count_parameters(new)}
    assert f"{sizes['before']:,} -> {sizes['after']:,}" in result.stdout

    record = json.loads((out / "inherit.json").read_text())
    assert (record["kind"], record["source"], record["seed"]) == ("inherit", str(folder), 3)
    assert record["parameters"] == sizes
    assert LayerPlan.from_records(record["plan"]) == plan
    assert record["environment"]["versions"]["torch"] and record["created"]


def test_the_tokenizer_comes_along(stories: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    for parts in ("all", "mlp"):
        out = tmp_path / parts
        assert call(stories, "--layers", 3, "--parts", parts, "--out", out).exit_code == 0
        assert (
            AutoTokenizer.from_pretrained(out)("Lily ran").input_ids
            == AutoTokenizer.from_pretrained(stories)("Lily ran").input_ids
        )


def test_plan_only_reads_no_weights_and_writes_nothing(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert call(folder, "--layers", ",".join(["0", "1"] * 200), "--plan-only").exit_code == 0  # no path is that long
    result = call(folder, "--layers", "1:3", "--plan-only")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(str(LayerPlan.from_layers("1:3", 4)))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_mistakes_get_one_line(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"no weights: the mistakes below must be found before they are read")
    out = tmp_path / "out"
    error = refusal(folder, "--layers", 20, "--out", out)
    assert isinstance(error, PlanError) and str(error) == "asked for 20 layers, the model has 4 (0-3)"
    assert "unknown part 'attn'" in str(refusal(folder, "--layers", 2, "--parts", "attn", "--out", out))
    assert "pass --out DIR" in str(refusal(folder, "--layers", 2))
    assert isinstance(refusal(tmp_path / "nowhere", "--layers", 2, "--out", out), ModelError)
    assert isinstance(refusal(folder, "--layers", 2, "--out", folder), OutputError)
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    assert "exists and is not empty" in str(refusal(folder, "--layers", 2, "--parts", "mlp", "--out", out))
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    (out / "mine.txt").unlink()
    assert "damaged" in str(refusal(folder, "--layers", 2, "--out", out))
    assert not list(out.iterdir())


def write_analysis(folder: Path, recommended: Recommendation, model: str, identity: str | None = None) -> None:
    measures = LayerMeasures(rank=(2.0,), mass=(3.0,), max_rank=2.0, avg_mass=3.0, lazy=False)
    AnalysisRecord(
        model=model,
        identity=identity,
        depth=recommended.depth,
        tau=0.9,
        eta=0.9,
        sequences=1,
        length=8,
        masks=("causal",),
        layers=(LayerAnalysis(index=0, causal=measures),),
        recommendation=recommended,
    ).write(folder / "spectra.json")


def test_an_analysis_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    """Of the same depth: what a model is decides, not where it lies."""
    shutil.copytree(folder, tmp_path / "moved")
    make_llama(attention_bias=True).save_pretrained(tmp_path / "other")
    analysis = tmp_path / "analysis"
    analysis.mkdir()
    for name in ("other", "moved"):
        write_analysis(
            analysis, Recommendation(depth=4, start=3, cut=(3,), reason=""), name, model_identity(tmp_path / name)
        )
        arguments = (folder, "--layers", analysis, "--out", tmp_path / f"{name}-out")
        if name == "other":
            line = f"{analysis} is the analysis of another model (other) than {folder}: analyse {folder}"
            assert str(refusal(*arguments)) == line
        else:
            assert call(*arguments).stderr.count("note:") == 1  # there is no tokenizer


def test_layers_may_name_an_analysis(folder: Path, tmp_path: Path, tiny_llama: PreTrainedModel) -> None:
    analysis, out = tmp_path / "analysis", tmp_path / "out"
    analysis.mkdir()
    found = Recommendation(depth=4, start=3, cut=(3,), reason="by hand.")
    write_analysis(analysis, found, str(folder))
    result = call(folder, "--layers", analysis, "--out", out)
    assert result.exit_code == 0, result.output
    new = AutoModelForCausalLM.from_pretrained(out).state_dict()
    assert_same_weights(new, surgery.inherit(tiny_llama, [0, 1, 2]).state_dict())
    assert_same_weights(new, surgery.inherit(tiny_llama, found).state_dict())

    deeper = Recommendation(depth=6, start=3, cut=(3, 4, 5), reason="of another model.")
    write_analysis(analysis, deeper, str(folder))
    error = refusal(folder, "--layers", analysis, "--out", tmp_path / "other")
    assert str(error) == ("the recommendation is for a model of 6 layers, this model has 4 (0-3): analyse this model")
    (analysis / "spectra.json").write_text("{}")
    assert "run inheritune analyze again" in str(refusal(folder, "--layers", analysis, "--out", tmp_path / "other"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


@pytest.mark.parametrize("silent", [False, True])
def test_growth_from_a_trained_model(folder: Path, tmp_path: Path, tiny_llama: PreTrainedModel, silent: bool) -> None:
    trained = perturbed(surgery.inherit(tiny_llama, 2))
    trained.save_pretrained(tmp_path / "trained")
    option = ["--zero-output"] if silent else []
    result = call(folder, "--grow-from", tmp_path / "trained", "--layers", 4, *option, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "0-1     <-  target 0-1     attention, mlp, norms  -" in result.stdout
    assert ("output zero" in result.stdout) == silent
    plan = LayerPlan.append(2, 4, zero_output=silent)
    assert_same_weights(weights(tmp_path / "out"), surgery.inherit(tiny_llama, plan=plan, target=trained).state_dict())
    grown = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert torch.equal(logits(grown), logits(trained)) == silent
    record = read_record(tmp_path / "out" / "inherit.json", SurgeryRecord)
    assert record.target == str(tmp_path / "trained") and LayerPlan.from_records(record["plan"]) == plan


def test_arrangements_width_and_revival(folder: Path, tmp_path: Path, tiny_llama: PreTrainedModel) -> None:
    ranks = np.array([[9.0] * 4, [9.0, 1.0, 9.0, 9.0]] + [[9.0] * 4] * 2)
    spectra = Spectra(ranks, ranks, 0.9, 0.9, "causal", 3, 8, (0, 1, 2, 3))
    save_spectra(spectra, tmp_path / "analysis", "it")
    cases: dict[str, tuple[list[object], dict[str, object]]] = {
        "middle": (["--arrange", "middle", "--layers", 2], {"layers": [1, 2]}),
        "in-place": (["--arrange", "in-place", "--layers", "2:4"], {"plan": LayerPlan.in_place([2, 3], 4)}),
        "stacking": (["--arrange", "stacking", "--layers", 4], {"plan": LayerPlan.stacking(2)}),
        "width": (["--width", "1/2"], {"width": "1/2"}),
        "both": (["--width", "0.5", "--layers", 2], {"layers": 2, "width": 0.5}),
        "revive": (["--layers", 3, "--revive", tmp_path / "analysis"], {"layers": 3, "revive": {1: [1]}}),
    }
    for name, (options, wanted) in cases.items():
        result = call(folder, *options, "--out", tmp_path / name)
        assert result.exit_code == 0, result.output
        made = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        assert_same_weights(made.state_dict(), surgery.inherit(tiny_llama, **wanted).state_dict())  # type: ignore[arg-type]
        before, after = count_parameters(tiny_llama), count_parameters(made)
        assert f"parameters: {before:,} -> {after:,} ({after / before:.0%})" in result.stdout, name


def test_an_analysis_of_a_model_with_another_name_is_noted(folder: Path, tmp_path: Path) -> None:
    ranks = np.array([[1.0] * 4] + [[9.0] * 4] * 3)
    spectra = Spectra(ranks, ranks, 0.9, 0.9, "causal", 3, 8, (0, 1, 2, 3))
    for name, model in (("mine", str(folder)), ("other", "acme/llama")):
        save_spectra(spectra, tmp_path / name, model)
        result = call(folder, "--layers", 2, "--revive", tmp_path / name, "--out", tmp_path / f"{name}-out")
        assert result.exit_code == 0, result.output
        assert ("is the analysis of acme/llama, not of" in result.stderr) == (name == "other")


def test_the_card_names_the_command_without_the_places_on_this_machine(folder: Path, tmp_path: Path) -> None:
    for parts in ("all", "mlp"):
        assert call(folder, "--layers", "0:2", "--parts", parts, "--out", tmp_path / parts).exit_code == 0
        card = (tmp_path / parts / "README.md").read_text()
        assert f"inheritune inherit source --layers 0:2 --parts {parts} --out {parts}" in card
        assert str(LayerPlan.from_layers([0, 1], 4, parts)) in card
        assert str(tmp_path) not in card
    assert call(folder, "--width", "1/2", "--out", tmp_path / "narrow").exit_code == 0
    assert "the first part was kept: heads 4 -> 2, KV heads 2 -> 1" in (tmp_path / "narrow" / "README.md").read_text()


def test_upload(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[object] = []
    monkeypatch.setattr(hub, "check_push", lambda name: done.append(name))
    monkeypatch.setattr(hub, "push", lambda *what, **how: done.append((what, how)) or "https://hub/me/cut")
    result = call(folder, "--layers", 2, "--out", tmp_path / "out", "--push-to", "me/cut", "--private")
    assert "uploaded: https://hub/me/cut" in result.stdout
    assert done == ["me/cut", ((tmp_path / "out", "me/cut"), {"private": True, "leave_out": ["inherit.json"]})]


def test_options_that_contradict_each_other(folder: Path, tmp_path: Path) -> None:
    out = ["--out", tmp_path / "out"]
    assert "no layers given: pass --layers, for example --layers 2" in str(refusal(folder, *out))
    assert "pass --grow-from TARGET" in str(refusal(folder, "--layers", 2, "--zero-output", *out))
    grow = ["--grow-from", folder, "--layers", "3,"]
    assert "--parts mlp does not go with --grow-from" in str(refusal(folder, *grow, "--parts", "mlp", *out))
    line = "none of its 4 are behind the last of them: expected at most 4, or the layers to append, for example '3,'"
    assert line in str(refusal(folder, "--grow-from", folder, "--layers", 5, *out))
    assert "-5MB" in str(refusal(folder, "--layers", 2, "--plan-only", "--max-shard-size", "-5MB"))
    assert "2/3 of 4 heads" in str(refusal(folder, "--width", "2/3", *out))
    assert "did you mean 'middle'" in str(refusal(folder, "--layers", 2, "--arrange", "midle", *out))
    assert "--private is for an upload" in str(refusal(folder, "--layers", 2, "--private", *out))
    make_gpt2().save_pretrained(tmp_path / "gpt2")
    other = refusal(folder, "--grow-from", tmp_path / "gpt2", "--layers", 2, *out)
    assert "different families (gpt2 and llama)" in str(other)
    too_large = refusal(folder, "--arrange", "random", "--layers", 2, "--seed", 2**64, *out)
    assert str(too_large) == "seed 18446744073709551616: expected a whole number from 0 to 9223372036854775807"
    assert "is the source" in str(refusal(folder, *grow, "--out", folder))
    assert not (tmp_path / "out").exists()
