"""The engine against a plain PyTorch loop, and a stopped run against one that was not."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from training_data import make_shards
from transformers import (
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    PreTrainedModel,
)

from inheritune.data import Shards, TrainingWindows
from inheritune.errors import DataError, RecipeError
from inheritune.training import (
    TrainingSettings,
    cosine_with_warmup,
    delete_checkpoints,
    engine,
    next_token_loss,
    train,
)
from tiny import VOCABULARY, make_gpt2


@pytest.fixture
def shards(tmp_path: Path) -> Shards:
    return make_shards(tmp_path / "shards")


def settings(**changes: object) -> TrainingSettings:
    base = {"steps": 12, "batch": 4, "length": 16, "learning_rate": 1e-2, "warmup_steps": 3, "min_learning_rate": 1e-3}
    return TrainingSettings(**{**base, "log_every": 2, "valid_every": 4, "checkpoint_every": 4, **changes})


def windows(shards: Shards, s: TrainingSettings) -> TrainingWindows:
    return TrainingWindows(shards, s.length, s.steps * s.batch, seed=5, order=s.order)


def plain_loop(model: PreTrainedModel, data: TrainingWindows, s: TrainingSettings) -> list[float]:
    """Train `model` the way a textbook would; return the loss of each step."""
    matrices = [p for name, p in model.named_parameters() if ".h." in name and p.ndim == 2 and s.optimizer == "muon"]
    rest = [p for p in model.parameters() if not any(p is matrix for matrix in matrices)]
    decayed, others = [p for p in rest if p.ndim >= 2], [p for p in rest if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.95), fused=True)]
    if matrices:
        optimizers.append(torch.optim.Muon(matrices, lr=1.0, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"))
    losses = []
    model.train()
    for step in range(s.steps):
        tokens = torch.stack([data[step * s.batch + row]["tokens"] for row in range(s.batch)])
        logits = model(tokens[:, :-1]).logits
        loss = F.cross_entropy(logits.reshape(-1, VOCABULARY), tokens[:, 1:].reshape(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = cosine_with_warmup(step, s.steps, s.warmup_steps, s.learning_rate, s.min_learning_rate)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def assert_same_weights(a: PreTrainedModel, b: PreTrainedModel, tolerance: float = 0.0) -> None:
    for (name, left), right in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


def logged(folder: Path, key: str) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if key in line]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_equals_a_plain_loop(shards: Shards, tmp_path: Path, optimizer: str) -> None:
    ours, plain, s = make_gpt2(2), make_gpt2(2), settings(optimizer=optimizer)
    outcome = train(ours, windows(shards, s), s, tmp_path / "run", seed=0)
    losses = plain_loop(plain, windows(shards, s), s)
    # The learning rate passes through a factor of the peak in one and not in the other: one rounding a step.
    assert_same_weights(ours, plain, tolerance=2e-6)
    assert logged(tmp_path / "run", "loss") == pytest.approx(np.reshape(losses, (-1, 2)).mean(1), abs=1e-6)
    assert outcome.tokens == 12 * 4 * 16
    assert logged(tmp_path / "run", "tokens")[-1] == outcome.tokens


def test_micro_batches_add_up_to_the_batch(shards: Shards, tmp_path: Path) -> None:
    for name, micro_batch in (("whole", None), ("parts", 1)):
        s = settings(micro_batch=micro_batch, steps=4)
        train(make_gpt2(2), windows(shards, s), s, tmp_path / name, seed=0)
    # Not the weights: the keys' biases have a gradient of rounding errors alone, which AdamW blows up.
    for key in ("loss", "grad_norm"):
        assert logged(tmp_path / "parts", key) == pytest.approx(logged(tmp_path / "whole", key), rel=1e-4)


@pytest.mark.parametrize(("stop_step", "optimizer"), [(5, "adamw"), (8, "adamw"), (11, "adamw"), (8, "muon")])
def test_a_stopped_run_goes_on_to_the_same_bits(shards: Shards, tmp_path: Path, stop_step: int, optimizer: str) -> None:
    whole, s = make_gpt2(2), settings(optimizer=optimizer)
    train(whole, windows(shards, s), s, tmp_path / "whole", seed=0, validate=lambda m: 1.0)

    class Killing(TrainingWindows):
        def __getitem__(self, n: int) -> dict[str, torch.Tensor]:
            if n == stop_step * s.batch:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().__getitem__(n)

    stopped = Killing(shards, s.length, s.steps * s.batch, seed=5)
    with pytest.raises(KeyboardInterrupt):
        train(make_gpt2(2), stopped, s, tmp_path / "cut", seed=0, validate=lambda m: 1.0)
    assert (tmp_path / "cut" / "checkpoints").is_dir()
    resumed = make_gpt2(2, seed=9)  # other weights: they must all come from the checkpoint
    train(resumed, windows(shards, s), s, tmp_path / "cut", seed=0, validate=lambda m: 1.0)
    assert_same_weights(whole, resumed)
    for key in ("step", "tokens", "loss", "learning_rate", "grad_norm", "valid_loss"):
        assert logged(tmp_path / "cut", key) == logged(tmp_path / "whole", key)
    delete_checkpoints(tmp_path / "cut")
    assert not (tmp_path / "cut" / "checkpoints").exists()


def test_a_loss_that_is_no_number_stops_the_run(shards: Shards, tmp_path: Path) -> None:
    s = settings()
    with pytest.raises(DataError, match=r"the loss is nan at step 2.*learning_rate"):
        train(
            make_gpt2(2), windows(shards, s), s, tmp_path, seed=0, loss=lambda m, t: m(t[:, :-1]).logits.sum() * np.nan
        )


def test_a_batch_that_cannot_be_shared_out_is_refused(shards: Shards, tmp_path: Path) -> None:
    s = settings(micro_batch=3)
    with pytest.raises(RecipeError, match=r"batch of 4 sequences .* multiple of 3"):
        train(make_gpt2(2), windows(shards, s), s, tmp_path, seed=0)


def test_the_signal_handlers_are_put_back(shards: Shards, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    s = settings(steps=2)
    train(make_gpt2(2), windows(shards, s), s, tmp_path, seed=0)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    shutil.rmtree(tmp_path)


class Signalling(TrainingWindows):
    """Data whose reading at some steps sends this process a signal."""

    def __init__(self, shards: Shards, s: TrainingSettings, signals: dict[int, signal.Signals]) -> None:
        super().__init__(shards, s.length, s.steps * s.batch, seed=5)
        self.signals = {step * s.batch: number for step, number in signals.items()}

    def __getitem__(self, n: int) -> dict[str, torch.Tensor]:
        if n in self.signals:
            os.kill(os.getpid(), self.signals[n])
        return super().__getitem__(n)


@pytest.mark.parametrize("steps", [12, 11])
def test_a_signal_in_the_last_steps_stops_and_nothing_is_lost(shards: Shards, tmp_path: Path, steps: int) -> None:
    """Also where the last step has no line in the log: 11 steps, a line every 2."""
    whole, s = make_gpt2(2), settings(steps=steps)
    train(whole, windows(shards, s), s, tmp_path / "whole", seed=0)
    calls = iter(range(1, 100))

    def loss(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
        if next(calls) == steps:
            os.kill(os.getpid(), signal.SIGINT)
        return next_token_loss(model, tokens)

    with pytest.raises(KeyboardInterrupt):
        train(make_gpt2(2), windows(shards, s), s, tmp_path / "cut", seed=0, loss=loss)

    class Untouched(TrainingWindows):
        def __getitem__(self, n: int) -> dict[str, torch.Tensor]:
            pytest.fail("a finished round is trained again")

    resumed = make_gpt2(2, seed=9)
    data = Untouched(shards, s.length, s.steps * s.batch, seed=5)
    outcome = train(resumed, data, s, tmp_path / "cut", seed=0)
    assert_same_weights(whole, resumed)
    assert outcome.seconds > 0
    assert logged(tmp_path / "cut", "loss") == logged(tmp_path / "whole", "loss")


def test_a_second_sigterm_waits_for_the_checkpoint_and_a_second_ctrl_c_does_not(shards: Shards, tmp_path: Path) -> None:
    s = settings(log_every=4)
    for number, saved in ((signal.SIGTERM, True), (signal.SIGINT, False)):
        folder = tmp_path / number.name
        with pytest.raises(KeyboardInterrupt):
            train(make_gpt2(2), Signalling(shards, s, {1: number, 2: number}), s, folder, seed=0)
        assert (folder / "checkpoints" / "checkpoint-4" / "complete.json").is_file() == saved


def test_a_checkpoint_at_a_signal_of_another_process(
    shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if another process had got the signal; it is asked about at lines of the log alone, and at the end."""
    asked: list[bool] = []
    monkeypatch.setattr(engine, "any_process", lambda flag: asked.append(flag) or len(asked) >= 3)
    s = settings()
    with pytest.raises(KeyboardInterrupt):
        train(make_gpt2(2), windows(shards, s), s, tmp_path, seed=0)
    assert asked == [False] * 4
    assert logged(tmp_path, "step") == [2, 4, 6]
    assert (tmp_path / "checkpoints" / "checkpoint-6" / "complete.json").is_file()


def test_a_gradient_that_is_no_number_is_null(shards: Shards, tmp_path: Path) -> None:
    """The loss is finite and its gradient is not: sqrt at 0."""
    s = settings(steps=1, log_every=1)

    def loss(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
        return (model(tokens[:, :-1]).logits.sum() * 0).sqrt()

    train(make_gpt2(2), windows(shards, s), s, tmp_path, seed=0, loss=loss)
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text)["grad_norm"] is None
    assert "NaN" not in text and "Infinity" not in text


TINY = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8,
    "num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": 64,
}  # fmt: skip


def test_gemma3_is_trained_and_its_configuration_put_back(shards: Shards, tmp_path: Path) -> None:
    """`Gemma3Config` has no `use_cache`; that of its text model has."""
    torch.manual_seed(0)
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
              "image_size": 28, "patch_size": 14}  # fmt: skip
    whole = Gemma3ForConditionalGeneration(
        Gemma3Config(text_config=TINY, vision_config=vision, mm_tokens_per_image=4, image_token_id=90)
    )
    s = settings(steps=2)
    for name, model in (("text", Gemma3ForCausalLM(Gemma3TextConfig(**TINY))), ("whole", whole)):
        before = model.config.to_dict().get("use_cache")
        train(model, windows(shards, s), s, tmp_path / name, seed=0)
        assert model.config.to_dict().get("use_cache") == before == (None if name == "whole" else True)
        assert len(logged(tmp_path / name, "loss")) == 1
