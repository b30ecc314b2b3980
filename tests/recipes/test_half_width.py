"""The method half-width: whole runs at a tiny scale, what they would cost, and mistakes, all said together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

import inheritune as it
from inheritune.data import train_tokenizer
from inheritune.decoder import save_model
from inheritune.errors import PlanError, RecipeError
from inheritune.evaluation import window_losses
from inheritune.recipes import load_recipe
from inheritune.recipes.preflight import check_recipe
from inheritune.recipes.workspace import open_workspace
from inheritune.report import write_report
from inheritune.surgery.width import narrow
from tiny import perturbed

TEXTS = [f"text {i}: " + " ".join(str((i * 89 + j * j * 31) % 97) for j in range(30 + i % 7)) for i in range(60)]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus and a reference of 3 layers, 4 heads of 4 units each."""
    root = tmp_path_factory.mktemp("setting")
    (root / "corpus.txt").write_text("\n\n".join(TEXTS))
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=270, n_positions=32, n_embd=16, n_layer=3, n_head=4, bos_token_id=0, eos_token_id=0,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    save_model(perturbed(GPT2LMHeadModel(config)), root / "reference", train_tokenizer(TEXTS, 270))
    return root


def recipe(root: Path, **changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "name": "narrow",
        "method": "half-width",
        "reference": str(root / "reference"),
        "data": {"source": str(root / "corpus.txt"), "valid_fraction": 0.2, "folder": str(root / "data")},
        "training": {
            "steps": 6, "batch": 4, "length": 16, "learning_rate": 3e-3, "warmup_steps": 2,
            "log_every": 2, "valid_every": 2, "checkpoint_every": 2,
        },
        "evaluation": {"margin": 0.0, "speed": False, "prompt": "text "},
        "analysis": {"of": ["result"], "sequences": 2, "length": 16},
    }  # fmt: skip
    return {**base, **changes}


def parameters(width: int, layers: int = 3) -> int:
    """Embedding, positions, blocks of 12 D^2 + 13 D, and the final norm."""
    return (270 + 32) * width + layers * (12 * width**2 + 13 * width) + 2 * width


def test_a_run_trains_every_layer_at_half_the_width(setting: Path, tmp_path: Path) -> None:
    record = it.run(recipe(setting), tmp_path / "r")
    (item,) = record["rounds"]
    assert (item["layers"], item["parameters"], item["tokens"]) == (3, parameters(8), 6 * 4 * 16)
    assert [(row["model"], row["source"]) for row in item["plan"]] == [("reference", layer) for layer in range(3)]
    assert (record["method"], record["recipe"]["width"]) == ("half-width", "1/2")

    # The first point of the curve is the sliced model, before any training.
    checked = load_recipe(recipe(setting))
    workspace = open_workspace(checked, tmp_path / "r", check_recipe(checked))
    sliced = narrow(AutoModelForCausalLM.from_pretrained(setting / "reference"), "1/2")
    assert item["start_evaluation"]["loss"] == pytest.approx(window_losses(sliced, workspace.windows).mean(), abs=1e-9)
    assert item["evaluation"]["loss"] < item["start_evaluation"]["loss"]

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "r" / record["result"]["model"])
    assert (model.config.n_layer, model.config.n_head, model.config.n_embd, model.config.n_inner) == (3, 2, 8, 32)
    assert it.run(recipe(setting), tmp_path / "r") == record
    page = write_report([tmp_path / "r"], tmp_path / "report.html").read_text()
    assert "half-width" in page and "reference 0–2" in page


def test_another_width_reaches_the_model(setting: Path, tmp_path: Path) -> None:
    record = it.run(recipe(setting, width=0.75, analysis=None), tmp_path / "r")
    assert record["recipe"]["width"] == "3/4"
    assert record["result"]["parameters"] == parameters(12)


def test_the_cost_is_that_of_the_narrow_model(setting: Path) -> None:
    cost = it.plan(recipe(setting))
    assert [(item["layers"], item["parameters"]) for item in cost["rounds"]] == [(3, parameters(8))]
    assert (cost.memory.training, cost.memory.reference) == (16 * parameters(8), 4 * parameters(16))
    wider = it.plan(recipe(setting, width="3/4"))
    assert wider["rounds"][0]["parameters"] == parameters(12)


def test_the_width_is_recorded_as_one_spelling() -> None:
    base = recipe(Path("nowhere"))
    assert {load_recipe({**base, "width": width}).width for width in (None, 0.5, "1/2", "0.5", "2/4")} == {"1/2"}
    assert load_recipe(base).width == "1/2"
    again = load_recipe({**base, "width": "3/4"})
    assert load_recipe(again.model_dump(mode="json")) == again
    assert load_recipe({**base, "method": "scratch"}).width is None
    assert load_recipe("half-width").width == "1/2"


def test_all_problems_are_said_together() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe(Path("nowhere"), layers=2, parts="mlp", width="50%", seed=-1))
    for problem in (
        "layers: method half-width takes no layers: expected method inheritune or scratch or",
        "parts: method half-width takes no parts: expected method inheritune, not 'mlp'",
        "width: expected a fraction between 0 and 1, for example 1/2 or 0.75, not '50%'",
        "seed: input should be greater than or equal to 0",
    ):
        assert problem in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(
        RecipeError, match=r"width: method scratch takes no width: expected method half-width, not 0\.5"
    ):
        load_recipe(recipe(Path("nowhere"), method="scratch", width=0.5))
    with pytest.raises(RecipeError, match="did you mean 'half-width'") as caught:
        load_recipe(recipe(Path("nowhere"), method="half-widht", width=0.5))
    assert "takes no width" not in str(caught.value)


def test_a_width_that_does_not_fit_is_refused_before_anything_is_read(setting: Path, tmp_path: Path) -> None:
    message = "1/3 of 4 heads is 1.33333: expected a fraction such as 1/4 or 1/2"
    with pytest.raises(PlanError, match=message):
        it.plan(recipe(setting, width="1/3"))
    with pytest.raises(PlanError, match=message):
        it.run(recipe(setting, width="1/3"), tmp_path / "r")
    assert not (tmp_path / "r").exists()
