"""Budgets in recipes, and growth along the path: the layers are measured when the run begins, or come from prices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_runs import FROZEN, recipe, setting, weights

import inheritune as it
from inheritune.data import open_shards, tuning_windows
from inheritune.decoder import load_model, load_tokenizer
from inheritune.errors import PlanError, RecipeError
from inheritune.recipes.loading import load_recipe
from inheritune.records.base import read_record
from inheritune.records.prices import PricesRecord
from inheritune.spectra.advice import recommend_by_price
from inheritune.surgery import LayerPlan
from inheritune.surgery.ablation import ablate
from inheritune.surgery.prices import measure_prices

assert setting  # the fixture
EVALUATION = {"margin": 0.0, "speed": False}


def sources(record: Any, number: int) -> list[tuple[str, int]]:
    return [(row["model"], row["source"]) for row in record["rounds"][number - 1]["plan"]]


def test_a_budget_is_measured_on_training_text_and_grown_along_the_path(setting: Path, tmp_path: Path) -> None:
    changes = {"keep": "50%", "layers": None, "growth": {"by": 2, "order": "path", "max_rounds": 2}}
    settings = recipe(setting, training=FROZEN, evaluation=EVALUATION, **changes)
    record = it.run(settings, tmp_path / "r")
    shards = open_shards(setting / "data")
    windows = tuning_windows(shards, load_tokenizer(shards.tokenizer), 8, 32)
    valid = shards.read("valid", 0, shards.tokens("valid"))
    assert not any(np.array_equal(valid[i : i + 9], window) for window in windows for i in range(len(valid) - 8))
    found = ablate(load_model(str(setting / "reference"), dtype="float32"), windows, depth=3)
    prices = read_record(tmp_path / "r" / "prices.json", PricesRecord)
    assert [each.cost.loss for each in prices.layers if each.cost] == found.losses.tolist()
    kept = recommend_by_price(prices, 3)
    assert sources(record, 1) == [("reference", layer) for layer in kept.keep]
    back = sorted([*kept.keep, *kept.order[:2]])
    expected = [("reference" if layer in kept.order else "target", layer) for layer in back]
    assert [(model, back[place]) for place, (model, _) in enumerate(sources(record, 2))] == expected
    grown, reference = weights(tmp_path / "r" / "round-2" / "model"), weights(setting / "reference")
    for place, layer in enumerate(back):
        for key in (key for key in grown if f".h.{place}." in key):
            torch.testing.assert_close(grown[key], reference[key.replace(f".h.{place}.", f".h.{layer}.")])
    # What is recorded runs again without measuring.
    again = load_recipe(record["recipe"])
    assert again.keep is None
    assert list(again.layers or ()) == list(kept.keep)


def test_a_run_that_goes_on_does_not_measure_again(
    setting: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = recipe(setting, drop=3, layers=None, growth={"max_rounds": 1}, evaluation=EVALUATION)
    first = it.run(settings, tmp_path / "r")
    (tmp_path / "r" / "record.json").unlink()
    monkeypatch.setattr("inheritune.surgery.prices.ablate", None)
    assert it.run(settings, tmp_path / "r")["rounds"] == first["rounds"]


def test_the_prices_of_an_analysis_say_which(setting: Path, tmp_path: Path) -> None:
    windows = np.random.default_rng(0).integers(0, 250, (6, 13))
    prices = measure_prices(tmp_path, str(setting / "reference"), windows, depth=2)
    checked = load_recipe(recipe(setting, layers=str(tmp_path), keep=4))
    assert list(checked.layers or ()) == list(recommend_by_price(prices, 4).keep)
    assert list(load_recipe(checked.as_json()).layers or ()) == list(checked.layers or ())
    planned = it.plan(recipe(setting, layers=str(tmp_path), keep=2, growth={"by": 2, "order": "path"}))
    assert [item.layers for item in planned.rounds] == [2, 4, 6]
    assert planned.rounds[-1].reference_layers == "0-5"


def test_a_budget_without_measuring_is_a_depth(setting: Path) -> None:
    for method in ("scratch", "distill", "stacking"):
        planned = it.plan(recipe(setting, method=method, layers=None, keep="66%"))
        assert planned.rounds[-1].layers == 4
    planned = it.plan(recipe(setting, layers=None, drop=2))
    assert "which 4 layers to keep is measured when the run begins" in planned.notes[0]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"keep": 3}, "2 and keep are both given: expected one, or an analysis for layers"),
        ({"layers": None, "keep": 9}, "keep 9 of 6 layers leaves 9: expected 1 to 6"),
        ({"layers": None, "keep": 3, "drop": 3}, "keep 3 and drop 3 are both given: expected one of them"),
        ({"growth": {"order": "path"}}, "growth.order path puts layers back by what they cost, which is not known"),
        ({"method": "half-width", "layers": None, "keep": 3}, "method half-width takes no keep: expected method"),
        ({"growth": {"order": "paht"}}, "did you mean 'path'"),
    ],
)
def test_a_budget_that_cannot_be_is_one_line(setting: Path, tmp_path: Path, changes: dict[str, Any], line: str) -> None:
    with pytest.raises((RecipeError, PlanError), match=line):
        it.run(recipe(setting, **changes), tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_layers_are_put_back_at_their_places() -> None:
    start = LayerPlan.from_layers([0, 2, 5], 6)
    plan = LayerPlan.insert(start, [3, 1], zero_output=True)
    assert [(row.model, row.source, row.zero_output) for row in plan] == [
        ("target", 0, False), ("reference", 1, True), ("target", 1, False), ("reference", 3, True),
        ("target", 2, False),
    ]  # fmt: skip
    afresh = LayerPlan.insert(start, [3, 1], "restart")
    assert [(row.model, row.source) for row in afresh] == [("reference", layer) for layer in (0, 1, 2, 3, 5)]
    assert plan.traced(start).reference_layers == "0-3, 5"
    with pytest.raises(PlanError, match="layer 2 of the reference is in the target already"):
        LayerPlan.insert(start, [2])
    with pytest.raises(PlanError, match="its own order alone"):
        LayerPlan.insert(LayerPlan.from_layers([2, 0], 6), [1])


def test_heads_start_anew_before_the_first_round_alone(setting: Path, tmp_path: Path) -> None:
    growth = {"by": 1, "max_rounds": 2}
    settings = recipe(setting, layers=2, revive={1: [0]}, training=FROZEN, evaluation=EVALUATION, growth=growth)
    it.run(settings, tmp_path / "r")
    expected = it.inherit(str(setting / "reference"), layers=2, revive={1: [0]}).state_dict()
    plain = it.inherit(str(setting / "reference"), layers=2).state_dict()
    first, second = (weights(tmp_path / "r" / f"round-{number}" / "model") for number in (1, 2))
    for key, value in first.items():
        torch.testing.assert_close(value, expected[key], msg=key)
        torch.testing.assert_close(second[key], value, msg=key)
    changed = {key for key in first if not torch.equal(expected[key], plain[key])}
    assert changed == {f"transformer.h.1.attn.c_attn.{name}" for name in ("weight", "bias")}


def test_a_repair_comes_before_the_first_round_alone(setting: Path, tmp_path: Path) -> None:
    settings = recipe(setting, layers=[0, 2, 4], repair=True, training=FROZEN, evaluation=EVALUATION)
    record = it.run({**settings, "growth": {"by": 1, "max_rounds": 2}}, tmp_path / "r")
    shards = open_shards(setting / "data")
    windows = tuning_windows(shards, load_tokenizer(shards.tokenizer), 7, 128)
    expected = it.inherit(str(setting / "reference"), layers=[0, 2, 4], repair=windows).state_dict()
    plain = it.inherit(str(setting / "reference"), layers=[0, 2, 4]).state_dict()
    assert any(not torch.equal(expected[key], plain[key]) for key in plain)
    for number in (1, 2):
        found = weights(tmp_path / "r" / f"round-{number}" / "model")
        for key in expected:
            torch.testing.assert_close(found[key], expected[key], rtol=0, atol=1e-7)
    assert record["rounds"][1]["layers"] == 4
