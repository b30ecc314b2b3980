"""The objective and schedule of a recipe: every method trains with them, mistakes are one line, plans count them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

import inheritune as it
from inheritune.data import TrainingWindows, open_shards, train_tokenizer
from inheritune.decoder import save_model
from inheritune.errors import RecipeError
from inheritune.recipes import preflight, rounds
from inheritune.recipes.loading import load_recipe
from inheritune.recipes.methods import METHODS, method_of
from inheritune.recipes.workspace import open_workspace
from inheritune.records.base import read_record
from inheritune.records.runs import RunRecord
from inheritune.report import write_report
from inheritune.training import losses
from tiny import perturbed

TEXTS = [f"text {i}: " + " ".join(str((i * 89 + j * j * 31) % 97) for j in range(30 + i % 7)) for i in range(60)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus and a reference of 4 layers."""
    root = tmp_path_factory.mktemp("setting")
    (root / "corpus.txt").write_text("\n\n".join(TEXTS))
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=290, n_positions=32, n_embd=16, n_layer=4, n_head=4, bos_token_id=0, eos_token_id=0,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    save_model(perturbed(GPT2LMHeadModel(config)), root / "reference", train_tokenizer(TEXTS, 270))
    return root


def recipe(root: Path, method: str = "inheritune", **changes: Any) -> dict[str, Any]:
    training = {
        "steps": 4, "batch": 2, "length": 16, "learning_rate": 3e-3, "warmup_steps": 1, "log_every": 1,
        "valid_every": 0, "watch_every": 0, "checkpoint_every": 2, **changes.pop("training", {}),
    }  # fmt: skip
    data = {"source": str(root / "corpus.txt"), "valid_fraction": 0.2, "folder": str(root / "data")}
    base: dict[str, Any] = {
        "name": "x", "method": method, "reference": str(root / "reference"), "data": data, "training": training,
        "evaluation": {"margin": 0.0, "speed": False, "prompt": None}, "analysis": None,
    }  # fmt: skip
    if method == "inheritune":
        base["growth"] = {"max_rounds": 1}
    return {**base, **changes}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_with_kl(method: str, root: Path, tmp_path: Path) -> None:
    record = it.run(recipe(root, method, objective="kl"), tmp_path / "r")
    assert record.recipe["objective"]["kl"] == 1 and record.recipe["objective"]["cross_entropy"] == 0
    assert (record.taught, record.trained) == (True, f"{method}, KL")
    first = json.loads((tmp_path / "r/round-1/metrics.jsonl").read_text().splitlines()[0])["loss"]
    # Step 1 is taken on the model as it was made: its KL on the first two windows, the plain way.
    made = load_recipe(recipe(root, method, objective="kl"))
    where = preflight.check_recipe(made)
    space = open_workspace(made, tmp_path / "w", where)
    plan = method_of(made).plans(space.recipe, space.depth)[0]
    student = method_of(made).build(space, plan, [])
    windows = TrainingWindows(open_shards(root / "data"), 16, 8, 0)
    tokens = torch.stack([windows[i]["tokens"] for i in range(2)])[:, :-1]
    with torch.no_grad():
        p, q = (F.softmax(model(tokens).logits.double()[..., :270], -1) for model in (space.reference, student))
    assert first == pytest.approx((p * (p.log() - q.log())).sum(-1).mean().item(), rel=1e-5)


def test_distill_is_the_mix_by_its_alpha(root: Path) -> None:
    made = load_recipe(recipe(root, "distill", distill_alpha=0.25))
    assert method_of(made).objective(made).model_dump(include={"cross_entropy", "kl"}) == {
        "cross_entropy": 0.25,
        "kl": 0.75,
    }
    made = load_recipe(recipe(root, "distill", objective="cross-entropy"))
    assert not method_of(made).objective(made).needs_teacher


SHAPE = {"model_type": "gpt2", "n_layer": 3, "n_embd": 32, "n_head": 4, "n_positions": 64}


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        (
            "scratch",
            {"reference": None, "architecture": SHAPE, "objective": "kl"},
            "needs a reference and there is none",
        ),
        ("inheritune", {"objective": "kll"}, r"objective: unknown objective 'kll': .*; did you mean 'kl'\?"),
        ("inheritune", {"objective": {"kl": 1, "temprature": 2}}, "'objective.temprature'.*did you mean 'temperature'"),
        ("inheritune", {"objective": {"kl": 1, "temperature": 0}}, "temperature: .*equal to 0.01, not 0"),
        ("inheritune", {"objective": {"kl": 1, "temperature": -1}}, "temperature: .*equal to 0.01, not -1"),
        ("inheritune", {"objective": {"kl": -1}}, "objective.kl: .*greater than or equal to 0, not -1"),
        ("inheritune", {"objective": {"kl": float("nan")}}, "objective.kl: .*finite"),
        ("inheritune", {"objective": {"kl": 0}}, "cross_entropy and kl are both 0"),
        ("inheritune", {"objective": {"cross_entropy": 1, "temperature": 2}}, "temperature 2.0 .* kl, .* is 0"),
        ("inheritune", {"objective": {"hidden": 1}}, "cross_entropy and kl are both 0"),
        ("inheritune", {"objective": {"kl": 1, "hidden_pairs": [[0, 0]]}}, "hidden, their weight, is 0"),
        (
            "inheritune",
            {"objective": {"kl": 1, "hidden": 1, "hidden_pairs": []}},
            "objective.hidden_pairs: .*at least 1",
        ),
        ("inheritune", {"objective": {"kl": 1, "hidden": 1, "hidden_pairs": [[1, 4]]}}, "reference of 4 .* no block 4"),
        ("inheritune", {"objective": {"kl": 1, "hidden": 1, "hidden_pairs": [[2, 3]]}}, "target of 2 .* no block 2"),
        (
            "stacking",
            {"layers": 4, "objective": {"kl": 1, "hidden": 1, "hidden_pairs": [[3, 3]]}},
            "of 2 .* no block 3",
        ),
        (
            "half-width",
            {"objective": {"kl": 1, "hidden": 1}},
            "target has 8 hidden units and the reference 16: expected 0",
        ),
        ("distill", {"distill_alpha": 0.5, "objective": "kl"}, "distill_alpha 0.5 and an objective are both given"),
        ("inheritune", {"training": {"schedule": "linaer"}}, r"training.schedule: .*did you mean 'linear'\?"),
        ("inheritune", {"training": {"cooldowns": [3]}}, "training: cooldowns .*expected schedule constant"),
        ("inheritune", {"training": {"schedule": "constant", "cooldowns": [2], "steps": None}}, "below training.steps"),
    ],
)
def test_a_mistake_is_one_line_in_plan_and_run(
    method: str, changes: dict[str, Any], message: str, root: Path, tmp_path: Path
) -> None:
    wrong = recipe(root, method, **changes)
    if changes.get("architecture"):
        wrong["data"]["tokenizer"] = "train:270"
    for call in (it.plan, lambda recipe: it.run(recipe, tmp_path / "r")):
        with pytest.raises(RecipeError, match=message) as caught:
            call(wrong)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "r").exists()


def test_a_plan_counts_the_teacher_of_any_method(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "_product_rate", lambda hidden, tokens: 1e9)
    alone, taught = (it.plan(recipe(root, objective=name)) for name in ("cross-entropy", "kl"))
    assert taught.memory.logits == alone.memory.logits / 3 * 7

    def weights(layers: int) -> int:
        return (290 + 32) * 16 + layers * (12 * 16**2 + 13 * 16) + 2 * 16

    forward = (2 * weights(4) + 4 * 4 * 16 * 16) / (6 * weights(2) + 12 * 2 * 16 * 16)
    assert taught.seconds / alone.seconds == pytest.approx(1 + forward)
    averaged = it.plan(recipe(root, training={"average": 2}))
    assert averaged.memory.training - alone.memory.training == 4 * weights(2)
    monkeypatch.setattr(preflight, "rows_at_once", lambda *_: 5)
    assert it.plan(recipe(root, objective="kl")).memory.logits == 4 * (7 * 5 * 290 + 2 * 290 * 16)
    curve = {"schedule": "constant", "cooldowns": [2], "cooldown_share": 0.5}
    assert it.plan(recipe(root, training=curve)).tokens == (4 + 1) * 2 * 16


CURVE = {"steps": 10, "schedule": "constant", "cooldowns": [5, 8], "cooldown_share": 0.4, "average": 1}


def curve_recipe(root: Path, **changes: Any) -> dict[str, Any]:
    return recipe(root, training={**CURVE, **changes}, objective={"kl": 1, "hidden": 0.5})


@pytest.fixture(scope="module")
def curved(root: Path) -> RunRecord:
    return it.run(curve_recipe(root), root / "whole")


def timeless(record: RunRecord) -> list[Any]:
    return [point.model_copy(update={"seconds": 0.0}) for point in record.rounds[0].curve]


def test_cooldowns_give_the_curve_and_a_stopped_run_the_same_one(
    root: Path, curved: RunRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Branches leave at steps 3, 5 and 6: 5 + (8 - 3) + (10 - 5) steps are done."""
    made, whole = curve_recipe(root), curved
    (curve,) = (each.curve for each in whole.rounds)
    assert [(point.step, point.tokens, point.tokens_spent) for point in curve] == [
        (5, 5 * 32, 5 * 32),
        (8, 8 * 32, 10 * 32),
        (10, 10 * 32, 15 * 32),
    ]
    assert curve[-1].evaluation == whole.rounds[0].evaluation
    assert all(point.comparison is not None for point in curve)
    assert not list((root / "whole").rglob("checkpoint*"))
    alone = it.run(curve_recipe(root, steps=8, cooldowns=[]), tmp_path / "alone")
    assert (alone.result.evaluation, alone.result.comparison) == (curve[1].evaluation, curve[1].comparison)
    stops = iter((None, 7, None, 9, None))  # in the second branch, and at the trunk's end
    monkeypatch.setattr(rounds, "TrainingWindows", stopping(stops))
    while not (tmp_path / "cut" / "record.json").is_file():
        try:
            it.run(made, tmp_path / "cut")
        except KeyboardInterrupt:
            continue
    assert list(stops) == []
    cut = read_record(tmp_path / "cut" / "record.json", RunRecord)
    assert timeless(cut) == timeless(whole)
    one, two = (
        AutoModelForCausalLM.from_pretrained(place / "round-1/model") for place in (root / "whole", tmp_path / "cut")
    )
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    write_report([tmp_path / "cut"], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "inheritune, KL + 0.5 hidden states" in page and "round-1, 8 steps" in page


def stopping(stops: Any) -> type[TrainingWindows]:
    """Return data that stop the training, each time they are made, at the next of these steps."""

    class Stopping(TrainingWindows):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.stop = next(stops)

        def __getitem__(self, n: int) -> dict[str, torch.Tensor]:
            if self.stop is not None and n == 2 * self.stop:
                raise KeyboardInterrupt
            return super().__getitem__(n)

    return Stopping


def test_a_trunk_that_is_lost_is_trained_again(
    root: Path, curved: RunRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = rounds.branch_off

    def lost(trunk: Path, folder: Path) -> None:
        shutil.rmtree(trunk / "checkpoints")
        plain(trunk, folder)

    monkeypatch.setattr(rounds, "branch_off", lost)
    assert timeless(it.run(curve_recipe(root), tmp_path / "lost")) == timeless(curved)


def test_pieces_change_a_run_by_rounding_alone(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = recipe(root, objective="mix")
    whole = it.run(made, tmp_path / "whole")
    monkeypatch.setattr(losses, "rows_at_once", lambda *_: 5)
    pieces = it.run(made, tmp_path / "pieces")
    assert pieces.result.evaluation.loss == pytest.approx(whole.result.evaluation.loss, abs=1e-5)
