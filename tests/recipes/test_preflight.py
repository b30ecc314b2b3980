"""What a recipe costs, against numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import inheritune as it
from inheritune.errors import PlanError, RecipeError
from inheritune.recipes import preflight


def recipe(**changes: Any) -> dict[str, Any]:
    return {
        "name": "x", "method": "inheritune", "reference": "stdlib", "data": {"source": "stdlib"},
        "training": {"steps": 100, "batch": 16, "length": 128}, **changes,
    }  # fmt: skip


def parameters(layers: int) -> int:
    """Embedding, positions, blocks of 12 D^2 + 13 D, final norm, of the bundled reference: D = 64."""
    return 2048 * 64 + 128 * 64 + layers * (12 * 64**2 + 13 * 64) + 2 * 64


def test_the_worst_case_is_all_rounds_of_growth() -> None:
    cost = it.plan(recipe(growth={"by": 3}))
    assert [item["layers"] for item in cost["rounds"]] == [8, 11, 14, 16]
    assert [item["parameters"] for item in cost["rounds"]] == [parameters(n) for n in (8, 11, 14, 16)]
    assert cost["tokens"] == 4 * 100 * 16 * 128
    assert cost.memory.training == 16 * parameters(16)
    assert cost.memory.reference == 4 * parameters(16)
    piece, head = 128 * 2048 * 4, 64 * 2048 * 4  # bytes of the logits of 128 tokens, and of the gradients of the head
    assert cost.memory.logits == 3 * piece + 2 * head
    assert cost.memory.activations == 16 * 128 * 16 * (10 * 64 + 4 * 256) * 4
    assert cost.memory.libraries == (0 if torch.accelerator.is_available() else 520_000_000)
    assert cost.memory_bytes == sum(dict(cost.memory).values())


def test_limits_and_other_methods() -> None:
    def depths(**changes: Any) -> list[int]:
        return [item["layers"] for item in it.plan(recipe(**changes))["rounds"]]

    assert depths(growth={"by": 2, "max_rounds": 2}) == [8, 10]
    assert depths(growth={"by": 2, "max_layers": 9}) == [8, 9]
    assert depths(layers=16) == [16]
    assert depths(method="scratch", layers="0:5") == [5]
    assert depths(method="stacking", layers=12) == [6, 12]


def test_time_grows_with_the_work() -> None:
    rounds = it.plan(recipe(growth={"by": 8}))["rounds"]
    # 6 operations per weight and 12 per layer, position and hidden unit; one rate for both rounds.
    work = [6 * parameters(n) + 12 * n * 128 * 64 for n in (8, 16)]
    assert rounds[1]["seconds"] / rounds[0]["seconds"] == pytest.approx(work[1] / work[0])


def test_what_cannot_run_is_refused_before_anything_is_read() -> None:
    with pytest.raises(RecipeError, match="windows of 129 tokens: expected at most the model's context, 128"):
        it.plan(recipe(training={"steps": 1, "length": 129}))
    with pytest.raises(PlanError, match=r"17 layers, the model has 16 \(0-15\)"):
        it.plan(recipe(layers=17))


SHAPE = {"model_type": "gpt2", "n_layer": 3, "n_embd": 32, "n_head": 4, "n_positions": 64}


def from_scratch(**changes: Any) -> dict[str, Any]:
    data = {"source": "stdlib", "tokenizer": "train:300"}
    return {**recipe(method="scratch", reference=None, architecture=SHAPE, data=data), "training": TINY, **changes}


TINY = {"steps": 1, "batch": 2, "length": 32}


def test_an_architecture_has_the_vocabulary_of_the_tokenizer_that_the_recipe_trains() -> None:
    def count(vocabulary: int) -> int:
        return (vocabulary + 64) * 32 + 3 * (12 * 32**2 + 13 * 32) + 2 * 32

    assert it.plan(from_scratch()).rounds[0].parameters == count(300)
    own = {**SHAPE, "vocab_size": 512}
    assert it.plan(from_scratch(architecture=own)).rounds[0].parameters == count(512)


def test_the_plan_of_the_shipped_reference_is_the_shipped_reference() -> None:
    assert it.plan("stdlib-reference").rounds[0].parameters == parameters(16) == 939_136


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gtp2"}, r"architecture.model_type 'gtp2' is no decoder .*; did you mean 'gpt2'\?"),
        ({"model_type": "t5"}, "'t5' is no decoder"),
        ({"model_type": None}, "architecture.model_type .* expected gpt2"),
        ({"n_layr": 2}, r"'n_layr' is no field of a gpt2 configuration; did you mean 'n_layer'\?"),
        ({"n_head": 5}, "architecture: cannot build the gpt2: .*divisible"),
        ({"n_embd": "wide"}, "architecture: "),
        ({"n_embd": -1}, "architecture: "),
        ({"n_positions": 8}, "windows of 32 tokens: expected at most the model's context, 8"),
    ],
)
def test_a_wrong_architecture_is_one_line_in_plan_and_run(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    wrong = from_scratch(architecture={**SHAPE, **change})
    for call in (it.plan, lambda recipe: it.run(recipe, tmp_path / "r")):
        with pytest.raises(RecipeError, match=message) as caught:
            call(wrong)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 300
    assert not (tmp_path / "r").exists()


def test_a_teacher_costs_time_and_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "_product_rate", lambda hidden, tokens: 1e9)
    alone, taught = (it.plan(recipe(method=method, layers=8)) for method in ("scratch", "distill"))
    assert taught.memory.logits - alone.memory.logits == 4 * 128 * 2048 * 4
    forward = (2 * parameters(16) + 4 * 16 * 128 * 64) / (6 * parameters(8) + 12 * 8 * 128 * 64)
    assert taught.seconds / alone.seconds == pytest.approx(1 + forward)


def test_matrices_of_attention_are_counted_where_they_exist() -> None:
    dropout = {**SHAPE, "attn_pdrop": 0.1}
    plain = {**SHAPE, "attn_pdrop": 0.0}
    with_it, without = (it.plan(from_scratch(architecture=shape)).memory.activations for shape in (dropout, plain))
    assert with_it - without == (0 if torch.accelerator.is_available() else 2 * 32 * 3 * (3 * 4 * 32) * 4)


def test_many_rounds_are_said_first() -> None:
    assert it.plan(recipe(growth={"by": 1})).notes[0].startswith("at most 9 rounds")
    assert it.plan(recipe(growth={"by": 1, "max_rounds": 9})).notes == ()
    assert "no layers behind 15" in it.plan(recipe(layers="8:16")).notes[0]


def test_growth_goes_on_behind_the_last_layer_that_is_inherited() -> None:
    def depths(**changes: Any) -> list[int]:
        return [item.layers for item in it.plan(recipe(**changes)).rounds]

    assert depths(layers=[0, 2, 12], growth={"by": 2}) == [3, 5, 6]
    assert depths(layers="4:16") == [12]
    assert depths(layers=[0, 2], growth={"by": 5, "max_layers": 9}) == [2, 7, 9]


def test_what_is_left_to_the_text_is_taken_from_its_size(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("word " * 80_000)  # 400,000 bytes: 100,000 tokens, a fifth for validation
    open_ended = {"steps": None, "batch": None, "length": None}
    data = {"source": str(tmp_path / "text.txt"), "valid_fraction": 0.2}
    cost = it.plan(recipe(data=data, training=open_ended))
    assert cost.rounds[0].tokens == pytest.approx(80_000, rel=0.05)
    with pytest.raises(RecipeError, match=r"set training\.steps"):
        it.plan(recipe(data={"source": "hf:some/where"}, training=open_ended))
