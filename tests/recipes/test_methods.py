"""A method is one object: what a recipe may say to it, the depths it trains, its rounds; all else asks the registry."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import inheritune as it
from inheritune.data import train_tokenizer
from inheritune.decoder import save_model
from inheritune.errors import PlanError, RecipeError
from inheritune.recipes import METHODS, Method, Recipe
from inheritune.surgery import LayerPlan
from tiny import perturbed

TEXTS = [f"text {i}: " + " ".join(str((i * 89 + j * j * 31) % 97) for j in range(30 + i % 7)) for i in range(40)]

OWN_SETTINGS = {
    "architecture", "keep", "drop", "layers", "parts", "moved", "repair", "revive", "width", "distill_alpha", "growth",
}  # fmt: skip
"""Settings that only some methods take."""


class LastLayers(Method):
    """A toy: as many of the reference's last layers as `layers` counts, at most 3."""

    name = "last-layers"
    summary = "Takes the last layers."
    takes = frozenset({"layers", "width"})

    def read_setting(self, setting: str, value: Any) -> Any:
        if setting == "width" and value is not None:
            raise ValueError("expected null, this is a toy")
        return value

    def first_plan(self, recipe: Recipe, depth: int) -> LayerPlan:
        if int(str(recipe.layers)) > 3:
            raise PlanError("a toy has at most 3 layers")
        return LayerPlan.last(int(str(recipe.layers)), depth)


@pytest.fixture
def setting(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """A recipe for the toy, which is registered meanwhile."""
    METHODS["last-layers"] = LastLayers()
    (tmp_path / "text.txt").write_text("\n\n".join(TEXTS))
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=270, n_positions=32, n_embd=16, n_layer=4, n_head=2, bos_token_id=0, eos_token_id=0)
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
    save_model(perturbed(GPT2LMHeadModel(config)), tmp_path / "reference", train_tokenizer(TEXTS, 270))
    yield {
        "name": "toy", "method": "last-layers", "reference": str(tmp_path / "reference"), "layers": 2,
        "data": {"source": str(tmp_path / "text.txt"), "valid_fraction": 0.2},
        "training": {"steps": 2, "batch": 2, "length": 16, "log_every": 1, "valid_every": 0, "watch_every": 0},
        "evaluation": {"speed": False, "prompt": None}, "analysis": None,
    }  # fmt: skip
    del METHODS["last-layers"]


def test_a_new_method_is_one_object(setting: dict[str, Any], tmp_path: Path) -> None:
    assert [item.layers for item in it.plan(setting).rounds] == [2]
    record = it.run(setting, tmp_path / "r")
    assert [(row.model, row.source) for row in record.rounds[0].plan or ()] == [("reference", 2), ("reference", 3)]
    for call in (it.plan, lambda recipe: it.run(recipe, tmp_path / "no")):
        with pytest.raises(PlanError, match="a toy has at most 3 layers"):
            call({**setting, "layers": 4})
    assert not (tmp_path / "no").exists()
    with pytest.raises(RecipeError, match="did you mean 'last-layers'"):
        it.plan({**setting, "method": "last-layer"})
    with pytest.raises(RecipeError, match="parts: method last-layers takes no parts: expected method inheritune"):
        it.plan({**setting, "parts": "mlp"})
    with pytest.raises(RecipeError, match="width: expected null, this is a toy"):
        it.plan({**setting, "width": "1/2"})


def test_every_method_says_what_it_takes() -> None:
    assert list(METHODS) == ["inheritune", "scratch", "stacking", "hybrid-stacking", "half-width", "distill"]
    for name, method in METHODS.items():
        assert method.name == name
        assert method.summary.endswith(".")
        assert method.takes <= OWN_SETTINGS
    assert set().union(*(method.takes for method in METHODS.values())) == OWN_SETTINGS <= Recipe.model_fields.keys()
