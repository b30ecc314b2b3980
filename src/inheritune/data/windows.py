"""Fixed windows of tokens: the same ones every time, for evaluation and for analysis."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from inheritune.data.readers import BLANK_LINE
from inheritune.data.shards import Shards, is_shards, open_shards
from inheritune.data.sources import STDLIB, VALID_FRACTION, read_documents
from inheritune.data.tokenizer import encode
from inheritune.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def validation_windows(
    source: str | Path | Shards, tokenizer: PreTrainedTokenizerBase, length: int, limit: int
) -> np.ndarray:
    """Return at most `limit` validation windows, spread evenly and never overlapping in their targets.

    A window of `length + 1` tokens has `length` inputs and the `length` targets one place to the right; the next window
    starts with the last target of the one before, so every token is a target at most once.

    Args:
        source: shards (their validation split) or any text source (all of it).
        tokenizer: what turns text into tokens; shards come with their own.
        length: input tokens of a window.
        limit: the greatest number of windows.

    Returns:
        int64 of shape (windows, length + 1).

    Raises:
        DataError: there are fewer tokens than one window.
    """
    return spread_windows(read_tokens(source, tokenizer), length, limit, _name(source))


def spread_windows(tokens: np.ndarray, length: int, limit: int, name: str) -> np.ndarray:
    """Return windows as `validation_windows` does, of tokens (tokens,) of `read_tokens`; `name` is for an error."""
    whole = (len(tokens) - 1) // length
    if whole < 1:
        raise DataError(f"{name} has {len(tokens)} validation tokens: expected at least {length + 1}, one window")
    starts = length * (np.arange(min(limit, whole)) * whole // min(limit, whole))
    return tokens[starts[:, None] + np.arange(length + 1)]


def sample_windows(
    source: str | Path | Shards, tokenizer: PreTrainedTokenizerBase, sequences: int, length: int, seed: int
) -> np.ndarray:
    """Return `sequences` windows of `length` tokens drawn at random from the validation split (paper, Sec. 2: N, T).

    Returns:
        int64 of shape (sequences, length). The same seed and source give the same windows.

    Raises:
        DataError: there are fewer tokens than one window, or a count below 1.
    """
    if sequences < 1 or length < 1:
        raise DataError(f"{sequences} sequences of {length} tokens: expected at least 1 of each")
    return draw_windows(read_tokens(source, tokenizer), sequences, length, seed, _name(source))


def draw_windows(tokens: np.ndarray, sequences: int, length: int, seed: int, name: str) -> np.ndarray:
    """Return windows as `sample_windows` does, of tokens (tokens,) of `read_tokens`; `name` is for an error."""
    places = len(tokens) - length + 1
    if places < 1:
        raise DataError(f"{name} has {len(tokens)} tokens: expected at least {length}, one sequence")
    generator = np.random.default_rng(seed)
    starts = generator.choice(places, size=sequences, replace=sequences > places)
    return tokens[starts[:, None] + np.arange(length)]


def read_tokens(
    source: str | Path | Shards,
    tokenizer: PreTrainedTokenizerBase,
    separator: str = BLANK_LINE,
    field: str = "text",
) -> np.ndarray:
    """Return the validation tokens of shards, or the tokens of all of a text source: int64 of shape (tokens,).

    Of the standard library only the validation documents are read: the others are what models here are trained on.
    """
    if not isinstance(source, Shards) and is_shards(source):
        source = open_shards(source)
    if isinstance(source, Shards):
        return source.read("valid", 0, source.tokens("valid"))
    documents = read_documents(source, separator, field)
    if str(source) == STDLIB:
        documents = (document for document in documents if document.position() < VALID_FRACTION)
    parts = list(encode((document.text for document in documents), tokenizer))
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def _name(source: str | Path | Shards) -> str:
    return str(source.folder) if isinstance(source, Shards) else str(source)
