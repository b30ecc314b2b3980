"""What a model generates: a sample of its text, how fast, and in how much memory."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from inheritune.decoder import count_parameters, evaluating, load_model, open_decoder
from inheritune.decoder.view import on_accelerator
from inheritune.errors import DataError
from inheritune.evaluation.paired import CONFIDENCE, mean_interval
from inheritune.records.evaluation import Speed, SpeedRatio
from inheritune.records.runs import Sample

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Source: TypeAlias = "str | Path | PreTrainedModel"

TEMPERATURE = 0.8
TOP_K = 50
"""How samples are drawn: a little below the model's own spread, without its long tail; the same for every model."""
PROMPT_LENGTH = 128
NEW_TOKENS = 128
FEWEST_TURNS, MOST_TURNS = 4, 40
ENOUGH_SECONDS = 10.0
"""How long two models are compared: turns until so much time is spent, within these bounds."""


def measure_speed(
    model: Source, prompt_length: int = PROMPT_LENGTH, new_tokens: int = NEW_TOKENS, batch: int = 1, repeats: int = 3
) -> Speed:
    """Measure greedy generation of a fixed number of tokens with the KV cache, as a user of `model.generate` sees it.

    One call warms up, then the median of `repeats` calls counts. Prefill is the time from the prompt to the first new
    token; generation is the time of all new tokens after the first. Where prompt and new tokens exceed the model's
    context both are cut: the new tokens to half the context, the prompt to what is left; the record has the lengths
    used. Two models measured one after the other may differ by what else the machine did: see `compare_speed`.

    Args:
        model: a model, measured on its device, in its dtype, in evaluation mode; or a folder or hub id, see `loaded`.
        prompt_length: tokens of the prompt (random ids, always the same), at least 1.
        new_tokens: tokens to generate, at least 2; the end-of-text token does not stop it.
        batch: prompts at a time.
        repeats: measured calls.

    Raises:
        DataError: a length or a count is too small, or the context holds no prompt and two new tokens.
        ModelError: the model cannot be loaded.
    """
    return _measure([loaded(model)], prompt_length, new_tokens, batch, repeats)[0][0]


def compare_speed(
    target: Source,
    reference: Source,
    prompt_length: int = PROMPT_LENGTH,
    new_tokens: int = NEW_TOKENS,
    batch: int = 1,
    *,
    turns: int | None = None,
    confidence: float = CONFIDENCE,
) -> tuple[Speed, Speed, SpeedRatio]:
    """Measure two models in alternation; return their speeds and how many times as fast the target generates.

    Both are in memory, on the reference's device, in its dtype and with the same number of threads, and continue the
    same prompt. After a call of each that warms up, every turn times both, the target first in one turn and the
    reference first in the next, so that a machine that gets slower or faster meanwhile favours neither. The ratio is
    the geometric mean over the turns, its interval a t interval of the mean logarithm.

    Models, lengths and `batch` are as for `measure_speed`; the shorter of the two contexts cuts the lengths, and a copy
    of the target is measured where it has another dtype or device. `turns` is at least 2; by default it is an even
    number for about 10 seconds, at least 4 and at most 40.

    Raises:
        DataError: a length or a count is too small, or a context holds no prompt and two new tokens.
        ModelError: a model cannot be loaded.
    """
    ours, theirs = loaded(target), loaded(reference)
    if (ours.device, ours.dtype) != (theirs.device, theirs.dtype):  # copied, as a cast cannot be taken back
        ours = copy.deepcopy(ours).to(device=theirs.device, dtype=theirs.dtype)
    (speed, reference_speed), seconds = _measure([ours, theirs], prompt_length, new_tokens, batch, turns)
    logs = np.log(seconds[:, 1] / seconds[:, 0])
    low, high, _ = mean_interval(logs, confidence)
    ratio, ci_low, ci_high = np.exp([logs.mean(), low, high]).tolist()
    of_both = SpeedRatio(ratio=ratio, ci_low=ci_low, ci_high=ci_high, confidence=confidence, turns=len(logs))
    return speed, reference_speed, of_both


def loaded(source: Source) -> PreTrainedModel:
    """Return a model as it is; load a folder or hub id in the dtype it was saved in, on the accelerator if any.

    Raises:
        ModelError: it cannot be loaded.
    """
    return on_accelerator(load_model(source)) if isinstance(source, str | Path) else source


def _measure(
    models: Sequence[PreTrainedModel], prompt_length: int, new_tokens: int, batch: int, turns: int | None
) -> tuple[list[Speed], np.ndarray]:
    """Time models in alternation; return their speeds, and the seconds of generation, (turns, models) float64."""
    if batch < 1 or (turns is not None and turns < len(models)):
        raise DataError(f"a batch of {batch} and {turns} repeats: expected at least 1 and {len(models)}")
    prompt_length, new_tokens = _fitting_lengths(models, prompt_length, new_tokens)
    vocabulary = min(open_decoder(model).vocabulary for model in models)
    # Random ids that all models have, without a trace in the global random state.
    ids = torch.randint(vocabulary, (batch, prompt_length), generator=torch.Generator().manual_seed(0))
    prompt = ids.to(models[0].device)
    measured: list[list[tuple[float, float]]] = []
    with ExitStack() as stack:
        for model in models:
            # Without an end-of-text token nothing stops before the length that is asked for.
            lengths = {"min_new_tokens": new_tokens, "max_new_tokens": new_tokens}
            stack.enter_context(generating(model, do_sample=False, use_cache=True, pad_token_id=0, **lengths))
            _seconds(model, prompt)
        for turn in range(MOST_TURNS if turns is None else turns):
            # What the turns measured plays no part, or the interval would be too narrow.
            enough = turn >= FEWEST_TURNS and turn % 2 == 0 and np.sum(measured) >= ENOUGH_SECONDS
            if turns is None and enough:
                break
            order = (1, -1)[turn % 2]
            measured.append([_seconds(model, prompt) for model in models[::order]][::order])
        table = np.array(measured)  # (turns, models, 2)
        speeds = [_speed(model, prompt, new_tokens, table[:, n]) for n, model in enumerate(models)]
    return speeds, table[..., 1]


@contextmanager
def generating(model: PreTrainedModel, **settings: Any) -> Iterator[None]:
    """Let `model.generate` follow these settings alone, whatever defaults the checkpoint came with."""
    from transformers import GenerationConfig

    own = model.generation_config
    model.generation_config = GenerationConfig(**settings)
    try:
        with evaluating(model), torch.inference_mode():
            yield
    finally:
        model.generation_config = own


class _Clock:
    """A streamer of `generate` that notes when it gets the prompt (first) and each generated token (after it)."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        """Note the time; `value` is the prompt, (batch, length), or the newest token of each prompt, (batch,)."""
        # The tokens come as a copy on the CPU: a GPU has finished them.
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is left to note."""


def _seconds(model: PreTrainedModel, prompt: torch.Tensor) -> tuple[float, float]:
    """Continue a prompt, (batch, length) int64; return the seconds to the first new token, and from it to the last."""
    clock = _Clock()
    model.generate(prompt, attention_mask=torch.ones_like(prompt), streamer=clock)
    start, first, *_, last = clock.times
    return first - start, last - first


def _speed(model: PreTrainedModel, prompt: torch.Tensor, new_tokens: int, seconds: np.ndarray) -> Speed:
    """Return the record of the medians of `seconds`, (repeats, 2) float64, for a prompt (batch, length) int64."""
    prefill, generation = np.median(seconds, axis=0).tolist()
    batch, length = prompt.shape
    device = model.device
    return Speed(
        generate_tokens_per_second=batch * (new_tokens - 1) / generation,
        prefill_tokens_per_second=batch * length / prefill,
        parameters=count_parameters(model),
        parameter_bytes=sum(weight.nbytes for weight in model.parameters()),
        kv_cache_bytes_per_token=_cache_bytes(model(input_ids=prompt, use_cache=True)) / (batch * length),
        batch=batch,
        prompt_length=length,
        new_tokens=new_tokens,
        repeats=len(seconds),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        threads=torch.get_num_threads(),
        dtype=str(model.dtype).removeprefix("torch."),
    )


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


def _cache_bytes(output: Any) -> int:
    """Return the bytes of the keys and values that a forward pass left in its cache; 0 for a model that keeps none."""
    cache = getattr(output, "past_key_values", None)
    layers = [layer for layer in getattr(cache, "layers", []) if getattr(layer, "keys", None) is not None]
    return sum(part.nbytes for layer in layers for part in (layer.keys, layer.values))


def generate_sample(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, new_tokens: int, seed: int
) -> Sample:
    """Continue `prompt` by sampling (temperature 0.8, the 50 likeliest tokens); the same seed gives the same text.

    The text ends at the model's end-of-text token, after `new_tokens`, or where the context is full. The global random
    state and the model's mode are left as they were. An empty prompt starts from the tokenizer's first special token.

    Returns:
        The prompt, and the continuation without the prompt and without special tokens.

    Raises:
        DataError: no new tokens are asked for, or the prompt fills the context, is empty without a token to
            start from, or has ids the model lacks.
    """
    if new_tokens < 1:
        raise DataError(f"a sample of {new_tokens} new tokens: expected at least 1")
    ids = _prompt_ids(model, tokenizer, prompt)
    decoder = open_decoder(model)
    end = model.generation_config.eos_token_id  # all that is kept of the model's own settings
    sampling = generating(
        model,
        do_sample=True,
        temperature=TEMPERATURE,
        top_k=min(TOP_K, decoder.vocabulary),
        max_new_tokens=new_tokens if decoder.context is None else min(new_tokens, decoder.context - len(ids)),
        eos_token_id=end,
        pad_token_id=(end[0] if isinstance(end, list) else end) or 0,
    )
    tokens = torch.tensor([ids], device=model.device)
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), sampling:
        torch.manual_seed(seed)
        output = model.generate(tokens, attention_mask=torch.ones_like(tokens))[0].tolist()
    # A tokenizer may write the first token of a text without its leading space, so the prompt is decoded with it.
    head, whole = (tokenizer.decode(some, skip_special_tokens=True) for some in (ids, output))
    rest = whole[len(head) :] if whole.startswith(head) else tokenizer.decode(output[len(ids) :], True)
    return Sample(prompt=prompt, text=rest)


def _prompt_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Return the prompt's token ids, checked against the model's vocabulary and context."""
    starts = (token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id) if token is not None)
    ids = list(tokenizer(prompt)["input_ids"]) or [*starts][:1]
    decoder = open_decoder(model)
    if not ids:
        raise DataError("the prompt is empty and the tokenizer has no token to start a text with: expected some text")
    if max(ids) >= decoder.vocabulary:
        raise DataError(f"the tokenizer made token {max(ids)}: expected 0 to {decoder.vocabulary - 1}, the vocabulary")
    if decoder.context is not None and len(ids) >= decoder.context:
        raise DataError(f"a prompt of {len(ids)} tokens: expected fewer than the model's context, {decoder.context}")
    return ids
