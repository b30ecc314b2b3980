"""What a recipe costs, against numbers worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from inheritune.errors import PlanError, RecipeError
from inheritune.recipes import load_recipe
from inheritune.recipes.preflight import preflight


def recipe(**changes: Any) -> dict[str, Any]:
    return {
        "name": "x", "method": "inheritune", "reference": "stdlib", "data": {"source": "stdlib"},
        "training": {"steps": 100, "batch": 16, "length": 128}, **changes,
    }  # fmt: skip


def parameters(layers: int) -> int:
    """Embedding, positions, blocks of 12 D^2 + 13 D, final norm, of the bundled reference: D = 64."""
    return 2048 * 64 + 128 * 64 + layers * (12 * 64**2 + 13 * 64) + 2 * 64


def test_the_worst_case_is_all_rounds_of_growth() -> None:
    cost = preflight(load_recipe(recipe(growth={"by": 3})))
    assert [item["layers"] for item in cost["rounds"]] == [8, 11, 14, 16]
    assert [item["parameters"] for item in cost["rounds"]] == [parameters(n) for n in (8, 11, 14, 16)]
    assert cost["tokens"] == 4 * 100 * 16 * 128
    logits = 16 * 128 * 2048 * 4
    assert cost["memory_bytes"] == 16 * parameters(16) + 4 * parameters(16) + 2 * logits


def test_limits_and_other_methods() -> None:
    def depths(**changes: Any) -> list[int]:
        return [item["layers"] for item in preflight(load_recipe(recipe(**changes)))["rounds"]]

    assert depths(growth={"by": 2, "max_rounds": 2}) == [8, 10]
    assert depths(growth={"by": 2, "max_layers": 9}) == [8, 9]
    assert depths(layers=16) == [16]
    assert depths(method="scratch", layers="0:5") == [5]
    assert depths(method="stacking", layers=12) == [6, 12]


def test_time_grows_with_the_work() -> None:
    rounds = preflight(load_recipe(recipe(growth={"by": 8})))["rounds"]
    # 6 operations per weight and 12 per layer, position and hidden unit; one rate for both rounds.
    work = [6 * parameters(n) + 12 * n * 128 * 64 for n in (8, 16)]
    assert rounds[1]["seconds"] / rounds[0]["seconds"] == pytest.approx(work[1] / work[0])


def test_what_cannot_run_is_refused_before_anything_is_read() -> None:
    with pytest.raises(RecipeError, match="windows of 129 tokens: expected at most the model's context, 128"):
        preflight(load_recipe(recipe(training={"steps": 1, "length": 129})))
    with pytest.raises(PlanError, match=r"17 layers, the model has 16 \(0-15\)"):
        preflight(load_recipe(recipe(layers=17)))
