"""How fast a model generates and what it keeps in memory, and a sample of its text."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from inheritune.decoder import count_parameters, evaluating, open_decoder
from inheritune.errors import DataError

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

TEMPERATURE = 0.8
TOP_K = 50
"""How samples are drawn: a little below the model's own spread, without its long tail; the same for every model."""


class _Clock:
    """A streamer of `generate` that notes when it gets the prompt (first) and each generated token (after it)."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        # The tokens come as a copy on the CPU: a GPU has finished them.
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is left to note."""


def measure_speed(
    model: PreTrainedModel, prompt_length: int, new_tokens: int, batch: int = 1, repeats: int = 3, seed: int = 0
) -> dict[str, Any]:
    """Measure greedy generation of a fixed number of tokens with the KV cache, as a user of `model.generate` sees it.

    One call warms up, then the median of `repeats` calls counts. Prefill is the time from the prompt to the first new
    token; generation is the time of all new tokens after the first. Where prompt and new tokens exceed the model's
    context both are cut: the new tokens to half the context, the prompt to what is left; the record has the lengths
    used.

    Args:
        model: measured on its device, in its dtype, in evaluation mode.
        prompt_length: tokens of the prompt (random ids), at least 1.
        new_tokens: tokens to generate, at least 2; the end-of-text token does not stop it.
        batch: prompts at a time.
        repeats: measured calls.
        seed: of the prompt's ids.

    Returns:
        `generate_tokens_per_second` and `prefill_tokens_per_second` (of the whole batch), `parameters` (tied once) and
        their `parameter_bytes`, `kv_cache_bytes_per_token` (of one sequence, averaged over the prompt: layers with a
        sliding window keep less than one entry a token), `batch`, `prompt_length`, `new_tokens`, `repeats`,
        `device`, `threads`.

    Raises:
        DataError: a length or a count is too small, or the context holds no prompt and two new tokens.
    """
    prompt_length, new_tokens = _fitting_lengths(model, prompt_length, new_tokens)
    if batch < 1 or repeats < 1:
        raise DataError(f"a batch of {batch} and {repeats} repeats: expected at least 1 of each")
    prompt = _random_prompt(model, batch, prompt_length, seed)
    with evaluating(model), torch.inference_mode(), _forced_greedy(model):
        spans = [_timed_generation(model, prompt, new_tokens) for _ in range(repeats + 1)][1:]
        cache_bytes = _cache_bytes(model(input_ids=prompt, use_cache=True))
    return {
        "generate_tokens_per_second": batch * (new_tokens - 1) / statistics.median(after for _, after in spans),
        "prefill_tokens_per_second": batch * prompt_length / statistics.median(first for first, _ in spans),
        "parameters": count_parameters(model),
        "parameter_bytes": sum(weight.numel() * weight.element_size() for weight in model.parameters()),
        "kv_cache_bytes_per_token": cache_bytes / (batch * prompt_length),
        "batch": batch,
        "prompt_length": prompt_length,
        "new_tokens": new_tokens,
        "repeats": repeats,
        "device": _device_name(model.device),
        "threads": torch.get_num_threads(),
    }


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


def _fitting_lengths(model: PreTrainedModel, prompt_length: int, new_tokens: int) -> tuple[int, int]:
    """Return the lengths of the prompt and of its continuation, cut to the model's context."""
    if prompt_length < 1 or new_tokens < 2:
        raise DataError(f"a prompt of {prompt_length} and {new_tokens} new tokens: expected at least 1 and 2")
    context = open_decoder(model).context
    if context is None or prompt_length + new_tokens <= context:
        return prompt_length, new_tokens
    if context < 3:
        raise DataError(f"a context of {context} tokens: expected at least 3, a prompt and two new tokens")
    new_tokens = min(new_tokens, max(2, context // 2))
    return min(prompt_length, context - new_tokens), new_tokens


def _random_prompt(model: PreTrainedModel, batch: int, length: int, seed: int) -> torch.Tensor:
    """Return (batch, length) random token ids on the model's device; the global random state is not used."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(open_decoder(model).vocabulary, (batch, length), generator=generator)
    return ids.to(model.device)


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


def _timed_generation(model: PreTrainedModel, prompt: torch.Tensor, new_tokens: int) -> tuple[float, float]:
    """Return the seconds to the first new token, and from the first to the last."""
    clock = _Clock()
    length = {"min_new_tokens": new_tokens, "max_new_tokens": new_tokens}
    model.generate(prompt, attention_mask=torch.ones_like(prompt), streamer=clock, **length)
    start, first, *_, last = clock.times
    return first - start, last - first


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
