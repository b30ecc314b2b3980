"""From whatever a user calls data to token windows that the models can be evaluated on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from inheritune.data import NamedTokenizer, check_same_vocabulary, open_shards, read_tokens, spread_windows
from inheritune.data.readers import BLANK_LINE
from inheritune.data.shards import is_shards
from inheritune.decoder import NoTokenizerError, load_tokenizer
from inheritune.errors import DataError

if TYPE_CHECKING:
    pass

LENGTH = 512
"""Input tokens of a window unless told otherwise: the memory of a batch is bounded, and more context changes little."""
SHORTEST = 64
ENOUGH_WINDOWS = 8
"""Fewer make a poor interval; halving the windows further costs context (0.1 nats a halving on a small Llama)."""
WINDOWS = 256


def open_tokenizer(source: str) -> NamedTokenizer | None:
    """Return the tokenizer that lies beside a model, or None where there is none."""
    try:
        return NamedTokenizer(source, load_tokenizer(source))
    except NoTokenizerError:
        return None


def resolve_windows(
    data: str | Path | np.ndarray,
    tokenizers: Sequence[NamedTokenizer],
    context: int | None,
    length: int | None,
    limit: int | None,
    separator: str = BLANK_LINE,
    field: str = "text",
) -> np.ndarray:
    """Return the windows of `data` to evaluate on.

    Args:
        data: windows (N, T + 1), a `.npy` file of them, a folder of prepared shards (their validation split) or any
            source of text (all of it).
        tokenizers: of the models, the target's first; the first one turns text into tokens.
        context: the longest input that all models take, or None.
        length: input tokens of a window. By default those of an array; of shards and text 512 or the context if that is
            shorter, halved (not below 64) while there are fewer than 8 windows, because an interval needs windows.
        limit: the greatest number of windows; by default all of an array, 256 of shards and text.
        separator: of documents of a text source, see `read_documents`.
        field: of the rows of a text source.

    Returns:
        (N, T + 1) integers.

    Raises:
        DataError: there is no such data, too little of it, or tokenizers that do not agree with it.
    """
    for name, value in (("length", length), ("number of windows", limit)):
        if value is not None and value < 1:
            raise DataError(f"a {name} of {value}: expected at least 1")
    if isinstance(data, np.ndarray):
        return _cut(data, length, limit)
    if Path(data).suffix == ".npy":
        return _cut(_read_array(Path(data)), length, limit)
    shards = _shards_tokenizer(data)
    check_same_vocabulary([*tokenizers, *shards])
    known = [*tokenizers, *shards]
    if not known:
        raise DataError(f"no tokenizer beside the model for the text {data}: expected token windows or a model folder")
    tokens = read_tokens(data, known[0].tokenizer, separator, field)
    return _windows_of(tokens, str(data), context, length, limit or WINDOWS)


def _read_array(path: Path) -> np.ndarray:
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except FileNotFoundError as error:
        raise DataError(f"no file {path}: expected token windows saved by numpy.save") from error
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"cannot read {path} as a NumPy array of token windows: {error}") from error


def _cut(windows: np.ndarray, length: int | None, limit: int | None) -> np.ndarray:
    """Return the first `length + 1` tokens of at most `limit` evenly spaced windows of an array."""
    if windows.ndim != 2:
        raise DataError(f"token windows of shape {windows.shape}: expected (N, T + 1)")
    if length is not None and windows.shape[1] < length + 1:
        raise DataError(
            f"windows of {windows.shape[1]} tokens: expected at least {length + 1} for a length of {length}"
        )
    count = min(limit or len(windows), len(windows))
    chosen = np.arange(count) * len(windows) // max(count, 1)
    return windows[chosen, : None if length is None else length + 1]


def _shards_tokenizer(data: str | Path) -> list[NamedTokenizer]:
    """Return the tokenizer of prepared shards; nothing for other data."""
    if not is_shards(data):
        return []
    return [NamedTokenizer(str(data), load_tokenizer(open_shards(data).tokenizer))]


def _windows_of(tokens: np.ndarray, name: str, context: int | None, length: int | None, limit: int) -> np.ndarray:
    """Return windows (N, length + 1) of tokens (tokens,), of a length that leaves enough of them unless it is given."""
    if length is None:
        length = min(context or LENGTH, LENGTH)
        while (len(tokens) - 1) // length < min(limit, ENOUGH_WINDOWS) and length // 2 >= SHORTEST:
            length //= 2
    return spread_windows(tokens, length, limit, name)
