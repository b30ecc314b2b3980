"""How fast a model generates and what it keeps in memory, and a sample of its text."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from inheritune.decoder import count_parameters, evaluating, open_decoder
from inheritune.errors import DataError
from inheritune.evaluation.paired import CONFIDENCE, mean_interval
from inheritune.records.evaluation import Speed, SpeedRatio

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

PROMPT_LENGTH = 128
NEW_TOKENS = 128
FEWEST_TURNS, MOST_TURNS = 4, 40
ENOUGH_SECONDS = 10.0
"""How long two models are compared: turns until so much time is spent, within these bounds."""
TEMPERATURE = 0.8
TOP_K = 50
"""How samples are drawn: a little below the model's own spread, without its long tail; the same for every model."""


Seconds = tuple[float, float]
"""To the first new token, and from there to the last."""


class _Clock:
    """A streamer of `generate` that notes when it gets the prompt (first) and each generated token (after it)."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        # The tokens come as a copy on the CPU: a GPU has finished them.
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is left to note."""


@dataclass(frozen=True)
class _Generation:
    """Greedy generation of `new_tokens` tokens by one model from one prompt, (batch, prompt_length) int64."""

    model: PreTrainedModel
    prompt: torch.Tensor
    new_tokens: int

    def seconds(self) -> Seconds:
        """Generate once; return the seconds to the first new token, and from the first to the last."""
        clock = _Clock()
        length = {"min_new_tokens": self.new_tokens, "max_new_tokens": self.new_tokens}
        self.model.generate(self.prompt, attention_mask=torch.ones_like(self.prompt), streamer=clock, **length)
        start, first, *_, last = clock.times
        return first - start, last - first

    def speed(self, measured: Sequence[Seconds]) -> Speed:
        """Return the record of the median of what was measured."""
        batch, prompt_length = self.prompt.shape
        cache_bytes = _cache_bytes(self.model(input_ids=self.prompt, use_cache=True))
        return Speed(
            generate_tokens_per_second=batch * (self.new_tokens - 1) / statistics.median(s for _, s in measured),
            prefill_tokens_per_second=batch * prompt_length / statistics.median(s for s, _ in measured),
            parameters=count_parameters(self.model),
            parameter_bytes=sum(weight.numel() * weight.element_size() for weight in self.model.parameters()),
            kv_cache_bytes_per_token=cache_bytes / (batch * prompt_length),
            batch=batch,
            prompt_length=prompt_length,
            new_tokens=self.new_tokens,
            repeats=len(measured),
            device=_device_name(self.model.device),
            threads=torch.get_num_threads(),
            dtype=str(self.model.dtype).removeprefix("torch."),
        )


def measure_speed(
    model: PreTrainedModel,
    prompt_length: int = PROMPT_LENGTH,
    new_tokens: int = NEW_TOKENS,
    batch: int = 1,
    repeats: int = 3,
    seed: int = 0,
) -> Speed:
    """Measure greedy generation of a fixed number of tokens with the KV cache, as a user of `model.generate` sees it.

    One call warms up, then the median of `repeats` calls counts. Prefill is the time from the prompt to the first new
    token; generation is the time of all new tokens after the first. Where prompt and new tokens exceed the model's
    context both are cut: the new tokens to half the context, the prompt to what is left; the record has the lengths
    used. Two models measured one after the other may differ by what else the machine did: see `compare_speed`.

    Args:
        model: measured on its device, in its dtype, in evaluation mode.
        prompt_length: tokens of the prompt (random ids), at least 1.
        new_tokens: tokens to generate, at least 2; the end-of-text token does not stop it.
        batch: prompts at a time.
        repeats: measured calls.
        seed: of the prompt's ids.

    Raises:
        DataError: a length or a count is too small, or the context holds no prompt and two new tokens.
    """
    if batch < 1 or repeats < 1:
        raise DataError(f"a batch of {batch} and {repeats} repeats: expected at least 1 of each")
    with _generating([model], prompt_length, new_tokens, batch, seed) as (one,):
        one.seconds()
        return one.speed([one.seconds() for _ in range(repeats)])


def compare_speed(
    target: PreTrainedModel,
    reference: PreTrainedModel,
    prompt_length: int = PROMPT_LENGTH,
    new_tokens: int = NEW_TOKENS,
    batch: int = 1,
    *,
    dtype: torch.dtype | None = None,
    turns: int | None = None,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> tuple[Speed, Speed, SpeedRatio]:
    """Measure two models in alternation, and how many times as fast as the reference the target generates.

    Both are in memory, on the reference's device, in one dtype and with the same number of threads, and continue the
    same prompt. After a call of each that warms up, every turn times both, the target first in one turn and the
    reference first in the next, so that a machine that gets slower or faster meanwhile favours neither. The ratio is
    the geometric mean over the turns, its interval a t interval of the mean logarithm.

    Args:
        target: measured; a copy is measured where it has another dtype or device.
        reference: what it is measured against, likewise.
        prompt_length: as for `measure_speed`; the shorter of the two contexts cuts it.
        new_tokens: likewise.
        batch: prompts at a time.
        dtype: of both models; by default the reference's, as it is loaded in the precision in which it was saved.
        turns: at least 2; by default an even number for about 10 seconds, at least 4 and at most 40.
        confidence: level of the interval of the ratio.
        seed: of the prompt's ids.

    Returns:
        The target's speed, the reference's, and the ratio.

    Raises:
        DataError: a length or a count is too small, or a context holds no prompt and two new tokens.
    """
    if batch < 1 or (turns is not None and turns < 2):
        raise DataError(f"a batch of {batch} and {turns} turns: expected at least 1 and 2")
    models = [_copied(model, reference.device, dtype or reference.dtype) for model in (target, reference)]
    measured: list[tuple[Seconds, Seconds]] = []
    with _generating(models, prompt_length, new_tokens, batch, seed) as (ours, theirs):
        for each in (ours, theirs):
            each.seconds()
        while len(measured) < turns if turns is not None else not _is_enough(measured):
            order = (ours, theirs) if len(measured) % 2 == 0 else (theirs, ours)
            seconds = {id(each): each.seconds() for each in order}
            measured.append((seconds[id(ours)], seconds[id(theirs)]))
        speeds = ours.speed([one for one, _ in measured]), theirs.speed([other for _, other in measured])
    return *speeds, _ratio(np.array([[one[1], other[1]] for one, other in measured]), confidence)


def _is_enough(measured: Sequence[tuple[Seconds, Seconds]]) -> bool:
    """Return whether there were turns enough; what they measured plays no part, or the interval would be too narrow."""
    count, spent = len(measured), sum(sum(one) + sum(other) for one, other in measured)
    return count >= FEWEST_TURNS and count % 2 == 0 and (count >= MOST_TURNS or spent >= ENOUGH_SECONDS)


def _ratio(seconds: np.ndarray, confidence: float) -> SpeedRatio:
    """Return the ratio of the speeds from the seconds of each turn, (turns, 2) float64: target, reference."""
    logs = np.log(seconds[:, 1] / seconds[:, 0])
    low, high, _ = mean_interval(logs, confidence)
    return SpeedRatio(
        ratio=math.exp(logs.mean()),
        ci_low=math.exp(low),
        ci_high=math.exp(high),
        confidence=confidence,
        turns=len(logs),
    )


def _copied(model: PreTrainedModel, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """Return `model` if it has this device and dtype, else a copy that has: a cast cannot be taken back."""
    if (model.device, model.dtype) == (device, dtype):
        return model
    return copy.deepcopy(model).to(device=device, dtype=dtype)


@contextmanager
def _generating(
    models: Sequence[PreTrainedModel], prompt_length: int, new_tokens: int, batch: int, seed: int
) -> Iterator[list[_Generation]]:
    """Give what generates with each of the models, from one prompt and in evaluation mode."""
    prompt_length, new_tokens = _fitting_lengths(models, prompt_length, new_tokens)
    prompt = _random_prompt(models, batch, prompt_length, seed)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        for model in models:
            stack.enter_context(evaluating(model))
            stack.enter_context(_forced_greedy(model))
        yield [_Generation(model, prompt, new_tokens) for model in models]


def generate_sample(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, new_tokens: int, seed: int
) -> dict[str, str]:
    """Continue `prompt` by sampling (temperature 0.8, the 50 likeliest tokens); the same seed gives the same text.

    The text ends at the model's end-of-text token, after `new_tokens`, or where the context is full. The global random
    state and the model's mode are left as they were. An empty prompt starts from the tokenizer's first special token.

    Returns:
        `prompt`, and `text`: the continuation without the prompt and without special tokens.

    Raises:
        DataError: no new tokens are asked for, or the prompt fills the context, is empty without a token to
            start from, or has ids the model lacks.
    """
    if new_tokens < 1:
        raise DataError(f"a sample of {new_tokens} new tokens: expected at least 1")
    ids = _prompt_ids(model, tokenizer, prompt)
    decoder = open_decoder(model)
    room = new_tokens if decoder.context is None else min(new_tokens, decoder.context - len(ids))
    tokens = torch.tensor([ids], device=model.device)
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), evaluating(model), torch.inference_mode(), _sampling(model, room):
        torch.manual_seed(seed)
        output = model.generate(tokens, attention_mask=torch.ones_like(tokens))[0].tolist()
    # A tokenizer may write the first token of a text without its leading space, so the prompt is decoded with it.
    head, whole = (tokenizer.decode(some, skip_special_tokens=True) for some in (ids, output))
    rest = whole[len(head) :] if whole.startswith(head) else tokenizer.decode(output[len(ids) :], True)
    return {"prompt": prompt, "text": rest}


def _fitting_lengths(models: Sequence[PreTrainedModel], prompt_length: int, new_tokens: int) -> tuple[int, int]:
    """Return the lengths of the prompt and of its continuation, cut to the shortest context of the models."""
    if prompt_length < 1 or new_tokens < 2:
        raise DataError(f"a prompt of {prompt_length} and {new_tokens} new tokens: expected at least 1 and 2")
    contexts = [open_decoder(model).context for model in models]
    context = min((each for each in contexts if each is not None), default=None)
    if context is None or prompt_length + new_tokens <= context:
        return prompt_length, new_tokens
    if context < 3:
        raise DataError(f"a context of {context} tokens: expected at least 3, a prompt and two new tokens")
    new_tokens = min(new_tokens, max(2, context // 2))
    return min(prompt_length, context - new_tokens), new_tokens


def _random_prompt(models: Sequence[PreTrainedModel], batch: int, length: int, seed: int) -> torch.Tensor:
    """Return (batch, length) int64 ids that all models have, random, but not of the global random state."""
    generator = torch.Generator().manual_seed(seed)
    vocabulary = min(open_decoder(model).vocabulary for model in models)
    return torch.randint(vocabulary, (batch, length), generator=generator).to(models[0].device)


@contextmanager
def _generation_config(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """Let `model.generate` follow `config` alone, whatever defaults the checkpoint came with."""
    own = model.generation_config
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = own


@contextmanager
def _forced_greedy(model: PreTrainedModel) -> Iterator[None]:
    """Generate greedily; without an end-of-text token nothing stops before the length that is asked for."""
    from transformers import GenerationConfig

    with _generation_config(model, GenerationConfig(do_sample=False, use_cache=True, pad_token_id=0)):
        yield


@contextmanager
def _sampling(model: PreTrainedModel, new_tokens: int) -> Iterator[None]:
    """Sample up to `new_tokens` tokens; only the model's end-of-text token is kept of its own settings."""
    from transformers import GenerationConfig

    end = model.generation_config.eos_token_id
    pad = end[0] if isinstance(end, list) else end
    config = GenerationConfig(
        do_sample=True,
        temperature=TEMPERATURE,
        top_k=min(TOP_K, open_decoder(model).vocabulary),
        max_new_tokens=new_tokens,
        eos_token_id=end,
        pad_token_id=0 if pad is None else pad,
    )
    with _generation_config(model, config):
        yield


def _cache_bytes(output: Any) -> int:
    """Return the bytes of the keys and values that a forward pass left in its cache; 0 for a model that keeps none."""
    cache = getattr(output, "past_key_values", None)
    layers = [layer for layer in getattr(cache, "layers", []) if getattr(layer, "keys", None) is not None]
    return sum(part.numel() * part.element_size() for layer in layers for part in (layer.keys, layer.values))


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _prompt_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Return the prompt's token ids, checked against the model's vocabulary and context."""
    ids = list(tokenizer(prompt)["input_ids"])
    if not ids:
        ids = [token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id) if token is not None][:1]
    decoder = open_decoder(model)
    if not ids:
        raise DataError("the prompt is empty and the tokenizer has no token to start a text with: expected some text")
    if max(ids) >= decoder.vocabulary:
        raise DataError(f"the tokenizer made token {max(ids)}: expected 0 to {decoder.vocabulary - 1}, the vocabulary")
    if decoder.context is not None and len(ids) >= decoder.context:
        raise DataError(f"a prompt of {len(ids)} tokens: expected fewer than the model's context, {decoder.context}")
    return ids
