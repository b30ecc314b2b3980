"""`inheritune inherit`: prints the plan, writes a loadable folder and a record, refuses in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from surgery_families import assert_same_weights
from transformers import AutoModelForCausalLM, PreTrainedModel
from typer.testing import CliRunner, Result

import inheritune.surgery as surgery
from inheritune.cli import inherit as command
from inheritune.decoder import count_parameters
from inheritune.errors import InherituneError, ModelError, OutputError, PlanError
from inheritune.spectra.recommend import Recommendation
from inheritune.surgery import LayerPlan


def call(*arguments: object) -> Result:
    app = typer.Typer()
    app.callback()(lambda: None)
    command.register(app)
    return CliRunner().invoke(app, ["inherit", *map(str, arguments)])


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


def test_layers_may_name_an_analysis(folder: Path, tmp_path: Path, tiny_llama: PreTrainedModel) -> None:
    analysis, out = tmp_path / "analysis", tmp_path / "out"
    analysis.mkdir()
    found = Recommendation(4, 3, (3,), "by hand.")
    (analysis / "spectra.json").write_text(json.dumps({"recommendation": found.as_record()}))
    result = call(folder, "--layers", analysis, "--out", out)
    assert result.exit_code == 0, result.output
    new = AutoModelForCausalLM.from_pretrained(out).state_dict()
    assert_same_weights(new, surgery.inherit(tiny_llama, [0, 1, 2]).state_dict())
    assert_same_weights(new, surgery.inherit(tiny_llama, found).state_dict())

    deeper = Recommendation(6, 3, (3, 4, 5), "of another model.")
    (analysis / "spectra.json").write_text(json.dumps({"recommendation": deeper.as_record()}))
    error = refusal(folder, "--layers", analysis, "--out", tmp_path / "other")
    assert str(error) == ("the recommendation is for a model of 6 layers, this model has 4 (0-3): analyse this model")
    (analysis / "spectra.json").write_text("{}")
    assert "run inheritune analyze again" in str(refusal(folder, "--layers", analysis, "--out", tmp_path / "other"))
