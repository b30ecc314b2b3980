"""Layers that get another number compute what they did, in the families whose blocks compute by their number."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from surgery_families import (
    DEPTH,
    assert_same_weights,
    build,
    load,
    logits,
    own_blocks_outputs,
    tiny_config,
    trace,
)
from transformers import PreTrainedModel
from typer.testing import CliRunner

from inheritune import surgery
from inheritune.cli.main import app
from inheritune.errors import PlanError
from inheritune.evaluation.loss import window_losses
from inheritune.recipes.loading import load_recipe
from inheritune.recipes.methods import METHODS
from inheritune.surgery import LayerPlan, moved
from inheritune.surgery.ablation import ablate
from inheritune.surgery.config.blueprint import Draft

BY_NUMBER: dict[str, dict[str, Any]] = {
    "gpt2": {"scale_attn_by_inverse_layer_idx": True},
    "diffllama": {"attention_bias": True},
}


@functools.cache
def model_of(name: str) -> PreTrainedModel:
    return build(tiny_config(name, **BY_NUMBER[name]))


def gaps(source: PreTrainedModel, new: PreTrainedModel, layers: tuple[int, ...]) -> list[float]:
    """Return by how much each block's output differs from that of the source's own block, relative to its size."""
    entering, leaving = trace(new)
    expected = own_blocks_outputs(source, layers, entering)
    return [float((a - b).abs().max() / b.abs().max()) for a, b in zip(leaving, expected, strict=True)]


@pytest.mark.parametrize("layers", [(0, 2, 3), (3, 1, 0), (2, 0, 3, 3, 1)])
@pytest.mark.parametrize("name", BY_NUMBER)
def test_a_moved_block_gives_the_same_output(name: str, layers: tuple[int, ...]) -> None:
    source = model_of(name)
    assert max(gaps(source, surgery.inherit(source, layers), layers)) < 1e-6
    left = gaps(source, surgery.inherit(source, layers, moved="as-is"), layers)
    assert all((gap > 1e-3) == (new != old) for gap, (new, old) in zip(left, enumerate(layers), strict=True))


def test_in_float64_the_outputs_agree_to_twelve_digits() -> None:
    source = build(tiny_config("gpt2", **BY_NUMBER["gpt2"])).double()
    assert max(gaps(source, surgery.inherit(source, (0, 2, 3)), (0, 2, 3))) < 1e-12


@pytest.mark.parametrize("name", BY_NUMBER)
def test_the_cut_model_has_the_loss_that_ablation_says(name: str) -> None:
    source, windows = model_of(name), np.random.default_rng(5).integers(3, 97, (4, 13))
    for cut in ablate(source, windows).cuts:
        kept = [layer for layer in range(DEPTH) if layer not in cut.removed]
        assert cut.loss == pytest.approx(window_losses(surgery.inherit(source, kept), windows).mean(), abs=2e-6)
    assert max(max(cut.removed) for cut in ablate(source, windows).cuts) > 0


@pytest.mark.parametrize("name", BY_NUMBER)
def test_layers_that_keep_their_number_keep_their_bits(name: str) -> None:
    source = model_of(name)
    new = surgery.inherit(source, (0, 1))
    assert_same_weights(new.state_dict(), {key: source.state_dict()[key] for key in new.state_dict()})
    assert not moved.moved_weights(source.config, LayerPlan.in_place((1, 3), DEPTH))
    assert not moved.moved_weights(source.config, LayerPlan.from_layers((2, 0), DEPTH, "mlp,norms"))


@pytest.mark.parametrize("name", BY_NUMBER)
def test_files_equal_the_in_memory_path(name: str, tmp_path: Path) -> None:
    source = model_of(name)
    source.save_pretrained(tmp_path / "source")
    surgery.inherit_checkpoint(tmp_path / "source", tmp_path / "new", (0, 3, 1))
    assert [path.name for path in (tmp_path / "new").glob("*.safetensors")] == ["model.safetensors"]
    assert_same_weights(load(tmp_path / "new").state_dict(), surgery.inherit(source, (0, 3, 1)).state_dict())
    card = (tmp_path / "new" / "README.md").read_text()
    assert f"moved: layers 1-2 compute what they did: {name} has" in card
    surgery.inherit_checkpoint(tmp_path / "source", tmp_path / "left", (0, 3, 1), moved="as-is")
    left = surgery.inherit(source, (0, 3, 1), moved="as-is")
    assert_same_weights(load(tmp_path / "left").state_dict(), left.state_dict())
    text = (tmp_path / "left" / "README.md").read_text()
    assert "moved: layers 1-2 are left as they are" in text and 'layers=[0, 3, 1], moved="as-is"' in text


def test_the_file_is_the_same_wherever_source_and_target_lie(tmp_path: Path) -> None:
    """Its tensors are partly the source's and partly made for this, in a folder beside the target."""
    model_of("gpt2").save_pretrained(tmp_path / "source")
    for place in "az":
        surgery.inherit_checkpoint(tmp_path / "source", tmp_path / place / "new", (0, 3, 1))
    before, after = ((tmp_path / place / "new" / "model.safetensors").read_bytes() for place in "az")
    assert before == after


def test_bfloat16_weights_are_rounded_once(tmp_path: Path) -> None:
    source = build(tiny_config("gpt2", **BY_NUMBER["gpt2"])).to(torch.bfloat16)
    name = "transformer.h.{}.attn.c_attn.weight"
    old = source.get_parameter(name.format(3)).detach()
    expected = torch.cat([(old[:, :32].double() * 2 / 4).bfloat16(), old[:, 32:]], dim=1)
    assert torch.equal(surgery.inherit(source, (0, 3)).get_parameter(name.format(1)), expected)
    source.save_pretrained(tmp_path / "source")
    surgery.inherit_checkpoint(tmp_path / "source", tmp_path / "new", (1, 2))
    third = load(tmp_path / "new").get_parameter(name.format(1))
    old = source.get_parameter(name.format(2)).detach()
    assert torch.equal(third[:, :32], (old[:, :32].double() * 2 / 3).bfloat16()) and third.dtype == torch.bfloat16


def test_growth_keeps_the_trained_layers_and_makes_up_for_the_new_ones() -> None:
    source = model_of("gpt2")
    start = LayerPlan.from_layers((0, 2), DEPTH)
    small = surgery.inherit(source, plan=start)
    grown = surgery.inherit(source, plan=LayerPlan.append(2, 3, start=start, depth=DEPTH), target=small)
    assert torch.equal(logits(grown), logits(surgery.inherit(source, (0, 2, 3))))
    weight = "transformer.h.1.attn.c_attn.weight"
    assert torch.equal(grown.get_parameter(weight), small.get_parameter(weight))
    again = LayerPlan.append(2, 3, "restart", start=start.with_moved("as-is"), depth=DEPTH)
    assert torch.equal(
        logits(surgery.inherit(source, plan=again)), logits(surgery.inherit(source, (0, 2, 3), moved="as-is"))
    )


def test_stacking_leaves_its_layers_as_the_paper_does() -> None:
    source = model_of("gpt2")
    stacked = surgery.inherit(source, plan=LayerPlan.arranged("stacking", 4, DEPTH))
    assert torch.equal(logits(stacked), logits(surgery.inherit(source, (0, 1, 0, 1), moved="as-is")))
    kept = surgery.inherit(source, plan=LayerPlan.stacking(2).with_moved("keep"))
    assert torch.equal(logits(kept), logits(surgery.inherit(source, (0, 1, 0, 1))))


def test_a_revived_head_keeps_its_random_start() -> None:
    source = model_of("gpt2")
    new = surgery.inherit(source, (0, 2), revive={2: [1]}, seed=4).state_dict()
    random, key = surgery.scratch(source, 2, seed=4).state_dict(), "transformer.h.1.attn.c_attn.weight"
    assert torch.equal(new[key][:, 8:16], random[key][:, 8:16])
    old = source.state_dict()["transformer.h.2.attn.c_attn.weight"]
    assert torch.equal(new[key][:, :8], (old[:, :8].double() * (2 / 3)).float())


def test_a_key_of_zeros_cannot_take_what_lambda_lost() -> None:
    source = build(tiny_config("diffllama"))
    with torch.no_grad():
        source.get_parameter("model.layers.2.self_attn.lambda_k1").zero_()
    with pytest.raises(PlanError, match=r"lambda_q1 of layer 2 has a key of zeros, so layer 1 cannot .* moved='as-is'"):
        surgery.inherit(source, (0, 2))


def test_the_plan_says_what_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    config = model_of("gpt2").config
    plan = LayerPlan.from_layers((0, 2, 3), DEPTH)
    assert Draft.of(plan, config).notes == [
        "moved: layers 1-2 compute what they did: gpt2 has attention logits / (layer number + 1); "
        "query weights and biases are multiplied by (new number + 1) / (old number + 1)"
    ]
    assert Draft.of(plan.with_moved("as-is"), config).notes == [
        "moved: layers 1-2 are left as they are and compute something else: gpt2 has attention logits / "
        "(layer number + 1)"
    ]
    assert Draft.of(LayerPlan.first(2, DEPTH), config).notes == []
    assert Draft.of(plan, tiny_config("gpt2")).notes == []
    monkeypatch.setattr(moved, "_rules", lambda *_: {})
    assert Draft.of(plan, config).notes == [
        "moved: layers compute something else: gpt2 takes scaling from a layer's number"
    ]


def test_the_option_of_the_command(tmp_path: Path) -> None:
    model_of("gpt2").save_pretrained(tmp_path / "source")
    call = ["inherit", str(tmp_path / "source"), "--layers", "0,2", "--plan-only"]
    said = [CliRunner().invoke(app, [*call, *more]).stdout for more in ([], ["--moved", "as-is"])]
    assert "moved: layer 1 computes what it did" in said[0]
    assert "moved: layer 1 is left as it is" in said[1]
    stacked = CliRunner().invoke(app, ["inherit", str(tmp_path / "source"), "--layers", "4", "--arrange", "stacking",
                                       "--plan-only"])  # fmt: skip
    assert "moved: layers 2-3 are left as they are" in stacked.stdout


def test_a_wrong_way_to_move_is_one_line() -> None:
    message = "unknown way to move a layer 'kept': expected one of as-is, keep; did you mean 'keep'"
    with pytest.raises(PlanError, match=message):
        surgery.inherit(model_of("gpt2"), 2, moved="kept")
    with pytest.raises(PlanError, match=message):
        surgery.LayerRow("reference", 0, moved="kept")  # type: ignore[arg-type]


def test_records_hold_it_and_older_ones_left_the_layers() -> None:
    plan = LayerPlan.from_layers((0, 2), DEPTH)
    assert LayerPlan.from_records(plan.as_records()) == plan
    older = [{key: value for key, value in vars(row).items() if key != "moved"} for row in plan.as_records()]
    assert LayerPlan.from_records(older) == plan.with_moved("as-is")


def test_the_setting_of_a_recipe() -> None:
    recipe = {"name": "x", "method": "inheritune", "reference": "stdlib", "layers": [0, 2]}
    first = METHODS["inheritune"].first_plan  # type: ignore[attr-defined]
    assert first(load_recipe(recipe), 16) == LayerPlan.from_layers((0, 2), 16)
    left = load_recipe({**recipe, "moved": "as-is"})
    assert first(left, 16) == LayerPlan.from_layers((0, 2), 16).with_moved("as-is")
