"""Speed, memory and samples: what the numbers count, against a clock under control and against the cache itself."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from inheritune.decoder import load_model, load_tokenizer
from inheritune.errors import DataError
from inheritune.evaluation import compare_speed, generate_sample, generation, measure_speed
from tiny import make_gpt2, make_llama

FIELDS = {
    "generate_tokens_per_second",
    "prefill_tokens_per_second",
    "parameters",
    "parameter_bytes",
    "kv_cache_bytes_per_token",
    "batch",
    "prompt_length",
    "new_tokens",
    "repeats",
    "device",
    "threads",
    "dtype",
}


def test_record(tiny_llama: PreTrainedModel, capfd: pytest.CaptureFixture[str]) -> None:
    record = measure_speed(tiny_llama, prompt_length=9, new_tokens=5, batch=2, repeats=2)
    assert set(record.keys()) == FIELDS
    asked = {"batch": 2, "prompt_length": 9, "new_tokens": 5, "repeats": 2, "device": "cpu"}
    assert asked.items() <= record.as_json().items()
    # Embedding and head 97 x 32 each; a block has q and o 32 x 32, k and v 16 x 32, three 64 x 32, two norms of 32.
    parameters = 2 * 97 * 32 + 4 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32 + 2 * 32) + 32
    assert (record["parameters"], record["parameter_bytes"]) == (parameters, 4 * parameters)
    assert record["threads"] == torch.get_num_threads()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("repeats", [1, 3])
def test_rates_count_the_tokens_between_two_times(
    tiny_llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, repeats: int
) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(generation.time, "perf_counter", lambda: float(next(ticks)))
    record = measure_speed(tiny_llama, prompt_length=9, new_tokens=5, batch=2, repeats=repeats)
    # A tick a token: 2 x 9 prompt tokens in the first second, then 2 tokens a second.
    assert record["prefill_tokens_per_second"] == 18
    assert record["generate_tokens_per_second"] == 2
    assert next(ticks) == (1 + repeats) * (1 + 5), "one warm-up and the repeats, each a prompt and 5 tokens"


def test_rates_agree_with_a_clock_outside(tiny_gpt2: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    walls = []
    generate = tiny_gpt2.generate

    def timed(*arguments: object, **settings: object) -> object:
        start = time.perf_counter()
        result = generate(*arguments, **settings)
        walls.append(time.perf_counter() - start)
        return result

    monkeypatch.setattr(tiny_gpt2, "generate", timed)
    record = measure_speed(tiny_gpt2, prompt_length=32, new_tokens=32, repeats=1)
    seconds = 32 / record["prefill_tokens_per_second"] + 31 / record["generate_tokens_per_second"]
    assert 0.5 * walls[1] < seconds < walls[1]


def test_the_end_of_text_token_and_odd_defaults_do_not_stop_it(
    tiny_gpt2: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    prompt = torch.randint(97, (1, 9), generator=torch.Generator().manual_seed(0))
    first = tiny_gpt2(prompt).logits[0, -1].argmax().item()
    own = tiny_gpt2.generation_config
    own.eos_token_id, own.temperature, own.repetition_penalty, own.max_length = first, 0.3, 1.7, 12
    before = own.to_dict()
    ticks = itertools.count()
    monkeypatch.setattr(generation.time, "perf_counter", lambda: float(next(ticks)))
    measure_speed(tiny_gpt2, prompt_length=9, new_tokens=20, repeats=1)
    assert next(ticks) == 2 * 21
    assert tiny_gpt2.generation_config is own
    assert own.to_dict() == before
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("make", "dtype", "by_hand"),
    [
        (make_gpt2, torch.float32, 4 * 2 * 4 * 8 * 4),  # layers, keys and values, heads, head size, bytes
        (make_llama, torch.float32, 4 * 2 * 2 * 8 * 4),  # two key-value heads for four query heads
        (make_llama, torch.bfloat16, 4 * 2 * 2 * 8 * 2),
    ],
)
def test_cache_bytes(make: Callable[[], PreTrainedModel], dtype: torch.dtype, by_hand: int) -> None:
    model = make().to(dtype)
    record = measure_speed(model, prompt_length=12, new_tokens=2, batch=3, repeats=1)
    assert record["kv_cache_bytes_per_token"] == by_hand
    cache = model(torch.zeros((3, 12), dtype=torch.int64), use_cache=True).past_key_values
    kept = sum(part.nbytes for layer in cache.layers for part in (layer.keys, layer.values))
    assert record["kv_cache_bytes_per_token"] == kept / 36


def test_tied_weights_count_once(tiny_gpt2: PreTrainedModel) -> None:
    record = measure_speed(tiny_gpt2, 4, 2, repeats=1)
    block = 2 * 64 + (32 * 96 + 96) + (32 * 32 + 32) + (32 * 128 + 128) + (128 * 32 + 32)
    assert record["parameters"] == 97 * 32 + 64 * 32 + 4 * block + 64
    assert record["parameter_bytes"] == 4 * record["parameters"]


@pytest.mark.parametrize(
    ("asked", "used"),
    [((32, 32), (32, 32)), ((60, 10), (54, 10)), ((100, 100), (32, 32)), ((8, 500), (8, 32)), ((500, 2), (62, 2))],
)
def test_lengths_are_cut_to_the_context(
    tiny_gpt2: PreTrainedModel, asked: tuple[int, int], used: tuple[int, int]
) -> None:
    record = measure_speed(tiny_gpt2, *asked, repeats=1)
    assert (record["prompt_length"], record["new_tokens"]) == used


def test_mode_and_random_state_are_left_alone(tiny_gpt2: PreTrainedModel) -> None:
    tiny_gpt2.train()
    state = torch.get_rng_state()
    measure_speed(tiny_gpt2, 4, 2, repeats=1)
    assert tiny_gpt2.training
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 5), "a prompt of 0 and 5 new tokens: expected at least 1 and 2"),
        ((5, 1), "a prompt of 5 and 1 new tokens: expected at least 1 and 2"),
        ((5, 5, 0), "a batch of 0 and 3 repeats"),
        ((5, 5, 1, 0), "a batch of 1 and 0 repeats"),
    ],
)
def test_speed_mistakes_are_one_line(tiny_gpt2: PreTrainedModel, arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        measure_speed(tiny_gpt2, *arguments)


def test_a_sample_repeats_and_leaves_the_random_state(stories: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = load_model(stories), load_tokenizer(stories)
    capfd.readouterr()
    model.train()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one = generate_sample(model, tokenizer, "Once upon a time", 40, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    torch.manual_seed(6)
    assert generate_sample(model, tokenizer, "Once upon a time", 40, seed=1) == one
    assert generate_sample(model, tokenizer, "Once upon a time", 40, seed=2) != one
    assert one["prompt"] == "Once upon a time"
    assert capfd.readouterr().err == ""


def test_a_sample_is_the_continuation_alone(stories: Path) -> None:
    model, tokenizer = load_model(stories), load_tokenizer(stories)
    sample = generate_sample(model, tokenizer, "Lily went to the", 30, seed=0)
    # Prompt and text together tokenize to the prompt's tokens and 30 more: nothing is lost, no space either.
    assert sample["text"].startswith(" ")
    whole = tokenizer(sample["prompt"] + sample["text"])["input_ids"]
    prompt = tokenizer("Lily went to the")["input_ids"]
    assert whole[: len(prompt)] == prompt
    assert abs(len(whole) - len(prompt) - 30) <= 2  # sampled tokens may be split otherwise than the tokenizer would
    assert "<s>" not in sample["text"]


def test_a_sample_ends_with_the_story_or_the_context(stories: Path) -> None:
    model, tokenizer = load_model(stories), load_tokenizer(stories)
    story = generate_sample(model, tokenizer, "Once upon a time", 10_000, seed=0)["text"]
    assert len(tokenizer(story)["input_ids"]) <= 512
    assert "<s>" not in story
    assert generate_sample(model, tokenizer, "", 30, seed=0)["text"]


@pytest.mark.parametrize(
    ("prompt", "new_tokens", "message"),
    [
        ("word " * 600, 10, "expected fewer than the model's context, 512"),
        ("word", 0, "a sample of 0 new tokens"),
    ],
)
def test_sample_mistakes_are_one_line(stories: Path, prompt: str, new_tokens: int, message: str) -> None:
    model, tokenizer = load_model(stories), load_tokenizer(stories)
    with pytest.raises(DataError, match=message):
        generate_sample(model, tokenizer, prompt, new_tokens, seed=0)


def test_a_tokenizer_of_another_model_is_said_to_be_one(stories: Path, tiny_llama: PreTrainedModel) -> None:
    with pytest.raises(DataError, match="expected 0 to 96, the vocabulary"):
        generate_sample(tiny_llama, load_tokenizer(stories), "Once upon a time", 5, seed=0)


# -- Two models in alternation -----------------------------------------------------------------------------------------


def clocked(monkeypatch: pytest.MonkeyPatch, seconds: Callable[[object, int], float]) -> list[object]:
    """Let a call of `generate` take `seconds(model, number of calls before)` a token; return who was called."""
    calls: list[object] = []
    now = [0.0]
    generate = generation._seconds

    def timed(model: PreTrainedModel, prompt: torch.Tensor) -> tuple[float, float]:
        step = seconds(model, len(calls))
        calls.append(model)

        def tick() -> float:
            now[0] += step
            return now[0]

        monkeypatch.setattr(generation.time, "perf_counter", tick)
        return generate(model, prompt)

    monkeypatch.setattr(generation, "_seconds", timed)
    return calls


def test_two_models_are_timed_in_alternation(monkeypatch: pytest.MonkeyPatch) -> None:
    target, reference = make_llama(2), make_llama(4)
    calls = clocked(monkeypatch, lambda model, _: 1.0 if model is target else 2.0)
    ours, theirs, ratio = compare_speed(target, reference, 9, 5, turns=4)
    warm = [target, reference]
    assert calls == [*warm, target, reference, reference, target, target, reference, reference, target]
    assert (ours.generate_tokens_per_second, theirs.generate_tokens_per_second) == (1, 0.5)
    assert (ours.repeats, theirs.repeats, ratio.turns) == (4, 4, 4)
    # Without any spread between the turns the ratio is certain.
    assert ratio.ratio == pytest.approx(2)
    assert (ratio.ci_low, ratio.ci_high) == (ratio.ratio, ratio.ratio)


def test_the_interval_of_the_ratio_is_that_of_the_mean_logarithm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ratios 2, 4, 8 of three turns: logarithms of mean 2 ln 2, deviation ln 2, two degrees of freedom."""
    target, reference = make_llama(2), make_llama(4)
    ticks = {"target": itertools.chain([1.0], [1.0, 1.0, 1.0]), "reference": itertools.chain([1.0], [2.0, 4.0, 8.0])}
    clocked(monkeypatch, lambda model, _: next(ticks["target" if model is target else "reference"]))
    *_, ratio = compare_speed(target, reference, 9, 5, turns=3, confidence=0.95)
    half = 0.95 * math.sqrt(2 / (1 - 0.95**2)) / math.sqrt(3)
    assert ratio.ratio == pytest.approx(4)
    assert (ratio.ci_low, ratio.ci_high) == pytest.approx((4 / 2**half, 4 * 2**half))
    assert ratio.confidence == 0.95


def test_a_machine_that_slows_down_favours_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call takes 1 % longer than the one before: measured one after the other, equal models would differ."""
    calls = clocked(monkeypatch, lambda _, count: 1.01**count)
    *_, ratio = compare_speed(make_llama(2), make_llama(2), 9, 5, turns=8)
    assert ratio.ratio == pytest.approx(1, abs=1e-12)
    assert ratio.ci_low < 1 < ratio.ci_high
    assert len(calls) == 2 + 2 * 8


@pytest.mark.parametrize(("step", "turns"), [(0.001, 40), (0.055, 20), (1.0, 4)])
def test_slow_models_get_fewer_turns(monkeypatch: pytest.MonkeyPatch, step: float, turns: int) -> None:
    """A call has 5 tokens, so a turn takes 10 steps; 10 seconds in all are enough, the number of turns is even."""
    clocked(monkeypatch, lambda *_: step)
    *_, ratio = compare_speed(make_llama(2), make_llama(2), 9, 5)
    assert ratio.turns == turns


def test_both_run_in_the_reference_s_dtype_and_stay_as_they_are(tiny_llama: PreTrainedModel) -> None:
    reference = make_llama(2).to(torch.bfloat16)
    before = {name: weight.clone() for name, weight in tiny_llama.state_dict().items()}
    ours, theirs, _ = compare_speed(tiny_llama, reference, 4, 3, turns=2)
    assert (ours.dtype, theirs.dtype) == ("bfloat16", "bfloat16")
    assert ours.kv_cache_bytes_per_token == 2 * theirs.kv_cache_bytes_per_token
    assert tiny_llama.dtype == torch.float32
    assert all(torch.equal(weight, before[name]) for name, weight in tiny_llama.state_dict().items())


def test_the_shorter_context_and_vocabulary_serve_both(tiny_gpt2: PreTrainedModel) -> None:
    short = make_gpt2(2)
    short.config.max_position_embeddings = 16
    small = make_llama(2)
    small.resize_token_embeddings(11)
    ours, theirs, _ = compare_speed(tiny_gpt2, short, 60, 60, turns=2)
    assert (ours.prompt_length, ours.new_tokens) == (theirs.prompt_length, theirs.new_tokens) == (8, 8)
    compare_speed(tiny_gpt2, small, 30, 3, turns=2)


def test_comparison_mistakes_are_one_line(tiny_gpt2: PreTrainedModel) -> None:
    for settings, message in (({"batch": 0}, "a batch of 0"), ({"turns": 1}, "1 repeats: expected at least 1 and 2")):
        with pytest.raises(DataError, match=message):
            compare_speed(tiny_gpt2, tiny_gpt2, 5, 5, **settings)
