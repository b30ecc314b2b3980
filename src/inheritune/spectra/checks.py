"""A user's mistakes in what `analyze` is given, each found before any work and said in one line."""

from __future__ import annotations

from typing import Any, get_args

import torch
from torch import Tensor

from inheritune.decoder import Decoder, check_finite
from inheritune.errors import DataError, InherituneError, ModelError, unknown_name
from inheritune.records.analysis import Mask


def check_mask(mask: str) -> tuple[Mask, ...]:
    """Return the softmaxes that `mask` asks for: `"causal"`, `"full"` or `"both"`; another word is an error."""
    known: tuple[Mask, ...] = get_args(Mask)
    if mask not in (*known, "both"):
        raise InherituneError(unknown_name("mask", str(mask), [*known, "both"]))
    return tuple(name for name in known if mask in (name, "both"))


def check_tokens(tokens: Any) -> Tensor:
    """Return `tokens` as (N, T) int64, N >= 1 and T >= 2, on the CPU.

    Raises:
        DataError: they have another shape or are not integers.
    """
    import numpy as np

    try:
        array = np.asarray(tokens.detach().cpu() if isinstance(tokens, torch.Tensor) else tokens)
    except (ValueError, TypeError) as error:  # NumPy has no bfloat16
        raise DataError(
            "tokens are no array of integers, or sequences of different lengths: expected (N, T)"
        ) from error
    if array.dtype.kind not in "iu":
        raise DataError(f"tokens are {array.dtype}: expected integer token ids")
    if array.ndim != 2:
        raise DataError(f"tokens have shape {tuple(array.shape)}: expected (N, T), N sequences of T tokens")
    if array.shape[0] == 0:
        raise DataError("tokens hold 0 sequences: expected at least 1")
    if array.shape[1] < 2:
        raise DataError(f"sequences of T = {array.shape[1]} tokens: expected at least 2 (one token has but itself)")
    return torch.from_numpy(array.astype(np.int64))


def check_fit(decoder: Decoder, tokens: Tensor) -> None:
    """Refuse tokens, (N, T) int64, that the model cannot read.

    Raises:
        DataError: the sequences are longer than its context, or an id is outside its vocabulary.
    """
    length, context, vocabulary = tokens.shape[1], decoder.context, decoder.vocabulary
    if context is not None and length > context:
        raise DataError(f"sequences of {length} tokens: the model's context is {context} tokens, pass at most that")
    outside = (tokens < 0) | (tokens >= vocabulary)
    if outside.any():
        row, column = outside.nonzero()[0].tolist()
        raise DataError(
            f"token id {int(tokens[row, column])} (sequence {row}, position {column}) is outside the vocabulary "
            f"of {vocabulary} tokens: expected 0 to {vocabulary - 1}; was the text tokenized with another tokenizer?"
        )


def check_weights(decoder: Decoder) -> None:
    """Refuse, by a ModelError with the first one's name and layer, weights that are NaN, infinite or not loaded."""
    prefix = f"{decoder.blocks_path}."
    for name, weight in decoder.model.named_parameters():
        if weight.is_meta:
            raise ModelError(f"the weight {name} has no values (it is on the meta device): load the model first")
        inside = name.startswith(prefix)
        layer = name.removeprefix(prefix).partition(".")[0]
        check_finite(f"layer {layer} ({name})" if inside else f"the weight {name}", weight)
