"""What a model writes: a sample of its text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from inheritune.decoder import open_decoder
from inheritune.errors import DataError
from inheritune.evaluation.speed import generating
from inheritune.records.runs import Sample

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TEMPERATURE = 0.8
TOP_K = 50
"""How samples are drawn: a little below the model's own spread, without its long tail; the same for every model."""


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
