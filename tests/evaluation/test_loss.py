"""The loss of windows, against Hugging Face's own loss and against float64 NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from inheritune.decoder import load_model, load_tokenizer
from inheritune.errors import DataError, ModelError
from inheritune.evaluation import evaluate_windows, loss, window_losses
from tiny import VOCABULARY, make_gpt2, make_llama


def random_windows(count: int, length: int, vocabulary: int = VOCABULARY) -> np.ndarray:
    return np.random.default_rng(0).integers(0, vocabulary, (count, length + 1))


def numpy_losses(model: PreTrainedModel, windows: np.ndarray) -> np.ndarray:
    """Mean of -log softmax in float64, one window at a time, from the model's logits."""
    losses = []
    for window in windows:
        with torch.no_grad():
            logits = model(torch.tensor(window[None, :-1])).logits[0].double().numpy()
        shifted = logits - logits.max(axis=1, keepdims=True)
        log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        losses.append(-log_probabilities[np.arange(len(window) - 1), window[1:]].mean())
    return np.array(losses)


@pytest.mark.parametrize("make", [make_gpt2, make_llama])
@pytest.mark.parametrize("length", [1, 17, 64])
def test_equals_numpy_and_hugging_face(make: Callable[[], PreTrainedModel], length: int) -> None:
    model, windows = make(), random_windows(5, length)
    losses = window_losses(model, windows, batch=2)
    assert losses.dtype == np.float64
    np.testing.assert_allclose(losses, numpy_losses(model, windows), rtol=1e-6)
    for window, value in zip(windows, losses, strict=True):
        ids = torch.tensor(window[None, :-1])
        # Hugging Face shifts labels itself, so the last target has to come as one more label of a longer input.
        if length < 64:
            whole = torch.tensor(window[None])
            assert model(whole, labels=whole).loss.item() == pytest.approx(value, rel=1e-6)
        assert model(ids, shift_labels=torch.tensor(window[None, 1:]), labels=ids).loss.item() == pytest.approx(
            value, rel=1e-6
        )


def test_chunks_of_positions_change_nothing(tiny_gpt2: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    windows = random_windows(4, 20)
    whole = window_losses(tiny_gpt2, windows, batch=4)
    monkeypatch.setattr(loss, "LOGITS_PER_CHUNK", 7 * VOCABULARY)  # 7 positions: chunks cross window bounds
    np.testing.assert_array_equal(window_losses(tiny_gpt2, windows, batch=4), whole)


def test_a_batch_too_big_for_memory_runs_in_smaller_ones(
    tiny_gpt2: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = []
    forward = tiny_gpt2.forward

    def counted(input_ids: torch.Tensor, **settings: object) -> object:
        rows.append(input_ids.shape[0])
        return forward(input_ids, **settings)

    monkeypatch.setattr(tiny_gpt2, "forward", counted)
    monkeypatch.setattr(loss, "LOGITS_PER_BATCH", 3 * 20 * VOCABULARY + 1)
    windows = random_windows(7, 20)
    losses = window_losses(tiny_gpt2, windows, batch=16)
    assert rows == [3, 3, 3]
    np.testing.assert_allclose(losses, numpy_losses(make_gpt2(), windows), rtol=1e-6)


@pytest.mark.parametrize("make", [make_gpt2, make_llama])
def test_same_bits_again_in_another_order_and_fewer(make: Callable[[], PreTrainedModel]) -> None:
    model, windows = make(), random_windows(21, 48)
    losses = window_losses(model, windows, batch=8)
    np.testing.assert_array_equal(window_losses(model, windows, batch=8), losses)
    np.testing.assert_array_equal(window_losses(model, windows[::-1].copy(), batch=8)[::-1], losses)
    np.testing.assert_array_equal(window_losses(model, windows[:11], batch=8), losses[:11])


@pytest.mark.parametrize("batch", [1, 2, 5, 21, 64])
def test_another_batch_moves_a_loss_by_rounding_only(stories: Path, batch: int) -> None:
    model = load_model(stories)
    windows = random_windows(21, 100, 512)
    np.testing.assert_allclose(
        window_losses(model, windows, batch), window_losses(model, windows, 16), atol=2e-6, rtol=0
    )


def test_bfloat16_logits_are_reduced_in_float32(tiny_llama: PreTrainedModel) -> None:
    model, windows = tiny_llama.to(torch.bfloat16), random_windows(3, 30)
    # The oracle takes float64 logs of the same bfloat16 logits: a reduction in bfloat16 would be off by 1e-2.
    np.testing.assert_allclose(window_losses(model, windows, batch=1), numpy_losses(model, windows), rtol=1e-6)


def test_every_module_keeps_its_mode_and_dropout_is_off() -> None:
    model = make_gpt2()
    for block in model.transformer.h:
        block.attn.attn_dropout.p = 0.5
    windows = random_windows(3, 20)
    expected = window_losses(model, windows)
    model.train()
    model.transformer.h[1].eval()
    before = [module.training for module in model.modules()]
    np.testing.assert_array_equal(window_losses(model, windows), expected)
    assert [module.training for module in model.modules()] == before
    assert True in before
    assert False in before


def test_evaluation_record(tiny_gpt2: PreTrainedModel) -> None:
    windows = random_windows(6, 20)
    evaluation = evaluate_windows(tiny_gpt2, windows, "random")
    expected = numpy_losses(tiny_gpt2, windows)
    record = evaluation.summary
    assert record["loss"] == pytest.approx(expected.mean(), rel=1e-6)
    assert record["standard_error"] == pytest.approx(expected.std(ddof=1) / math.sqrt(6), rel=1e-4)
    assert record["perplexity"] == pytest.approx(math.exp(expected.mean()), rel=1e-5)
    assert (record["windows"], record["length"], record["tokens"], record["data"]) == (6, 20, 120, "random")
    np.testing.assert_allclose(evaluation.losses, expected, rtol=1e-6)


def test_one_window_has_no_standard_error(tiny_gpt2: PreTrainedModel) -> None:
    assert evaluate_windows(tiny_gpt2, random_windows(1, 20), "random").summary.standard_error is None


def test_a_diverged_model_is_said_to_be_one(tiny_gpt2: PreTrainedModel) -> None:
    with torch.no_grad():
        tiny_gpt2.transformer.ln_f.weight[3] = float("nan")
    with pytest.raises(ModelError, match="loss on window 0 is nan"):
        evaluate_windows(tiny_gpt2, random_windows(2, 20), "random")


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        (np.zeros((2, 66), dtype=np.int64), "windows of 65 input tokens: expected at most the model's context, 64"),
        (np.array([[1, 2], [3, 97]]), "token 97 in window 1: expected 0 to 96"),
        (np.array([[1, -2], [3, 4]]), "token -2 in window 0: expected 0 to 96"),
        (np.zeros((2, 1), dtype=np.int64), r"int64 of shape \(2, 1\)"),
        (np.zeros((0, 9), dtype=np.int64), r"int64 of shape \(0, 9\)"),
        (np.zeros(9, dtype=np.int64), r"int64 of shape \(9,\)"),
        (np.zeros((2, 9)), r"float64 of shape \(2, 9\)"),
    ],
)
def test_windows_that_do_not_fit_are_refused_in_one_line(
    tiny_gpt2: PreTrainedModel, windows: np.ndarray, message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        window_losses(tiny_gpt2, windows)
    assert "\n" not in str(caught.value)


def test_a_batch_of_nothing_is_refused(tiny_gpt2: PreTrainedModel) -> None:
    with pytest.raises(DataError, match="batch of 0 windows"):
        window_losses(tiny_gpt2, random_windows(2, 5), batch=0)


def test_the_real_model_on_its_own_stories(stories: Path) -> None:
    """About 1.27 nats per token (../shared/README.md): the token <s>, then a story, each story by itself."""
    model, tokenizer = load_model(stories), load_tokenizer(stories)
    text = (stories / "tinystories_sample.txt").read_text(encoding="utf-8")
    texts = [story.strip() for story in text.split("<|endoftext|>") if story.strip()]
    windows = [np.array([tokenizer(story)["input_ids"]]) for story in texts]
    counts = np.array([window.shape[1] - 1 for window in windows])
    assert all(window[0, 0] == 1 for window in windows)
    assert counts.sum() == 1804
    losses = np.array([window_losses(model, window)[0] for window in windows])
    assert (losses * counts).sum() / counts.sum() == pytest.approx(1.266, abs=0.002)
