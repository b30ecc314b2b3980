"""Schedules against values worked out by hand; the mean of the last weights; branches against plain trainings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from training_data import make_shards
from transformers import PreTrainedModel, TrainerCallback

from inheritune.data import Shards, TrainingWindows
from inheritune.training import TrainingSettings, cosine_with_warmup, engine, train
from inheritune.training.checkpoints import FOLDER, branch_off
from tiny import make_gpt2


def settings(**changes: Any) -> TrainingSettings:
    base = {"steps": 10, "batch": 2, "length": 8, "learning_rate": 0.5, "warmup_steps": 2, "log_every": 1}
    return TrainingSettings(**{**base, "valid_every": 0, "watch_every": 0, "checkpoint_every": 4, **changes})


def rates(**changes: Any) -> list[float]:
    made = settings(**changes)
    return [made.rate(step) * made.learning_rate for step in range(made.steps)]


def test_the_default_is_the_cosine_of_before() -> None:
    made = settings()
    assert [made.rate(i) for i in range(11)] == [cosine_with_warmup(i, 10, 2, 1.0, 1e-5 / 0.5) for i in range(11)]


def test_linear_falls_to_zero_unless_told_otherwise() -> None:
    assert rates(schedule="linear") == pytest.approx([0.25, 0.5, *(i / 16 for i in range(8, 0, -1))])
    assert rates(schedule="linear", min_learning_rate=0.1)[-1] == pytest.approx(0.1 + 0.4 / 8)
    assert settings(schedule="linear").rate(10) == 0
    assert rates(schedule="linear", steps=2, warmup_steps=9) == [0.5, 0.5]  # the warm-up is cut to one step


def test_constant_stays_and_falls_in_the_last_fifth() -> None:
    assert rates(schedule="constant") == pytest.approx([0.25, *[0.5] * 8, 0.25])
    assert rates(schedule="constant", cooldown_share=0.0) == [0.25, *[0.5] * 9]
    assert rates(schedule="constant", cooldown_share=0.4) == pytest.approx([0.25, *[0.5] * 6, 0.375, 0.25, 0.125])
    assert rates(schedule="constant", log_every=4)[8:] == pytest.approx([0.5, 0.25])  # from a line of the log on


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "cosin"}, "schedule"),
        ({"cooldowns": [5]}, r"cooldowns \[5\]: expected schedule constant"),
        ({"schedule": "constant", "cooldown_share": 0.0, "cooldowns": [5]}, "a cooldown_share above 0"),
        ({"schedule": "constant", "cooldowns": [5, 10]}, r"rising numbers of steps below training.steps, 10"),
        ({"schedule": "constant", "cooldowns": [6, 5]}, "rising numbers of steps"),
        ({"schedule": "constant", "cooldowns": [0]}, "greater than 0"),
        ({"schedule": "constant", "cooldowns": [3]}, r"cooldowns \[3\]: expected 4 or more, with warmup_steps 2 and "),
        ({"schedule": "constant", "cooldowns": [3], "log_every": 4}, "expected 5 or more, .* and log_every 4"),
        ({"schedule": "constant", "cooldowns": [3], "warmup_steps": 6}, "expected none below 10 steps, with warmup"),
        ({"average": 11}, "average 11: expected 0 to 10, the steps"),
        ({"schedule": "constant", "cooldowns": [5, 9], "average": 11}, "average 11: expected 0 to 10, the steps"),
        ({"schedule": "constant", "cooldowns": [5, 9], "average": 6}, "average 6 .* 0 to 3, the shortest branch"),
        (
            {"schedule": "constant", "cooldowns": [5], "steps": 40, "average": 6, "checkpoint_every": 4},
            "average 6 .* expected 0 to 5, the shortest branch",
        ),
        ({"schedule": "linear", "min_learning_rate": 0.6}, "min_learning_rate 0.6 is above learning_rate 0.5"),
    ],
)
def test_what_contradicts_itself_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        settings(**changes)


def test_the_steps_of_branches_are_counted() -> None:
    made = settings(schedule="constant", cooldowns=[5, 8])
    assert [made.trunk(end) for end in made.ends] == [4, 6, 8]
    assert [made.upto(end).steps_spent for end in made.ends] == [5, 9, 13]
    assert settings().steps_spent == 10


@pytest.fixture
def shards(tmp_path: Path) -> Shards:
    return make_shards(tmp_path / "shards")


def go(shards: Shards, made: TrainingSettings, folder: Path, seed: int = 0, **how: Any) -> PreTrainedModel:
    model = make_gpt2(2, seed=seed)
    data = TrainingWindows(shards, made.length, made.steps * made.batch, seed=5)
    train(model, data, made, folder, seed=0, **how)
    return model


def assert_same(one: PreTrainedModel, two: PreTrainedModel) -> None:
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_the_mean_of_the_last_weights(shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[torch.Tensor]] = []

    class Seeing(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
            seen.append([weight.detach().double().clone() for weight in kw["model"].parameters()])

    plain = engine.StopAtSignal
    monkeypatch.setattr(plain, "on_step_end", lambda self, *args, **kw: Seeing().on_step_end(*args, **kw))
    model = go(shards, settings(average=3, learning_rate=1e-2), tmp_path / "r")
    assert len(seen) == 10
    for weight, *last in zip(model.parameters(), *seen[-3:], strict=True):
        torch.testing.assert_close(weight.double(), torch.stack(last).mean(0), rtol=1e-6, atol=1e-7)
        assert not torch.equal(weight.double(), last[-1])
    assert_same(go(shards, settings(average=3, learning_rate=1e-2), tmp_path / "r", seed=9), model)  # from the last


def test_a_branch_is_a_training_of_its_own_to_the_last_bit(shards: Shards, tmp_path: Path) -> None:
    how: dict[str, Any] = {"schedule": "constant", "learning_rate": 1e-2, "average": 2}
    made, before = settings(cooldowns=[5, 8], **how), None
    for end in made.ends:
        stage, folder = made.upto(end), tmp_path / f"{end}"
        if before is not None:
            folder.mkdir()
            branch_off(before, folder)
            assert [path.name for path in (folder / FOLDER).iterdir()] == [f"checkpoint-{made.trunk(int(before.name))}"]
        # Other weights where they must all come from the trunk.
        branched = go(shards, stage, folder, seed=0 if before is None else 9, branches=end < made.steps)
        assert_same(branched, go(shards, settings(steps=end, **how), tmp_path / f"{end}-alone"))
        logs = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in (f"{end}", f"{end}-alone")]
        losses = [[json.loads(line)["loss"] for line in log] for log in logs]
        assert losses[0] == losses[1] and len(losses[0]) == end
        before = folder
