"""From whatever a user calls data to token windows that the models can be evaluated on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from inheritune.data.shards import is_shards, open_shards
from inheritune.data.tokenizer import NamedTokenizer, check_same_vocabulary, document_mark
from inheritune.data.windows import ENOUGH_WINDOWS, fitting_length, read_tokens, spread_windows, window_documents
from inheritune.decoder import NoTokenizerError, load_config, load_tokenizer
from inheritune.errors import DataError, ModelError
from inheritune.evaluation.generation import Source
from inheritune.evaluation.loss import check_windows

if TYPE_CHECKING:
    from transformers import PretrainedConfig

WINDOWS = 256
"""How many windows of a text unless told otherwise."""


def open_tokenizer(source: str) -> NamedTokenizer | None:
    """Return the tokenizer that lies beside a model, or None where there is none."""
    try:
        return NamedTokenizer(source, load_tokenizer(source))
    except NoTokenizerError:
        return None


def common_windows(
    sources: Sequence[Source],
    data: str | Path | np.ndarray,
    length: int | None,
    limit: int | None,
    separator: str,
    field: str,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the windows of `data` to evaluate all `sources` on, (N, T + 1) integers, and their documents, (N, 2).

    No weights are loaded for it. An array does not say of which documents its windows are, nor whether neighbours in
    it are neighbours in a text: then there are none. The arguments are those of `evaluate`; the tokenizer of the first
    source that has one turns text into tokens.

    Raises:
        DataError: there is no such data, too little of it, or tokenizers or models that do not agree with it.
        ModelError: there is no such model.
    """
    for name, value in (("length", length), ("number of windows", limit)):
        if value is not None and value < 1:
            raise DataError(f"a {name} of {value}: expected at least 1")
    configs = [load_config(source) for source in sources]
    tokenizers = [tokenizer for tokenizer in map(_tokenizer, sources) if tokenizer is not None]
    check_same_vocabulary(tokenizers)
    context = min((context for context in map(context_of, configs) if context is not None), default=None)
    documents = None
    if isinstance(data, np.ndarray):
        windows = _cut(data, length, limit)
    elif Path(data).suffix == ".npy":
        windows = _cut(_read_array(Path(data)), length, limit)
    else:
        tokens, mark = _tokens(data, tokenizers, separator, field)
        limit = limit or WINDOWS
        length = length or fitting_length(context, len(tokens), min(limit, ENOUGH_WINDOWS))
        windows = spread_windows(tokens, length, limit, data)
        documents = window_documents(tokens, mark, length, limit, data)
    check_windows(windows, context, min(config.get_text_config(decoder=True).vocab_size for config in configs))
    return windows, documents


def context_of(config: PretrainedConfig) -> int | None:
    """Return the greatest number of tokens of a model's input; None where its configuration names none."""
    return getattr(config.get_text_config(decoder=True), "max_position_embeddings", None) or None


def _tokenizer(source: Source) -> NamedTokenizer | None:
    if isinstance(source, str | Path):
        return open_tokenizer(str(source))
    name = source.name_or_path  # where the model once came from; nobody passed it, so it may be gone
    try:
        return open_tokenizer(name) if name else None
    except ModelError:
        if Path(name).is_dir():
            raise
        return None


def _tokens(data: str | Path, tokenizers: list[NamedTokenizer], separator: str, field: str) -> tuple[np.ndarray, int]:
    """Return the tokens of shards or a text, (tokens,) integers, and the one between two documents."""
    if is_shards(data):
        shards = NamedTokenizer(str(data), load_tokenizer(open_shards(data).tokenizer))
        check_same_vocabulary(tokenizers := [*tokenizers, shards])
    if not tokenizers:
        raise DataError(f"no tokenizer beside the model for the text {data}: expected token windows or a model folder")
    tokenizer = tokenizers[0].tokenizer
    return read_tokens(data, tokenizer, separator, field), document_mark(tokenizer)


def _read_array(path: Path) -> np.ndarray:
    """Return the array in a `.npy` file, of whatever shape; it is read only where it is used."""
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except FileNotFoundError as error:
        raise DataError(f"no file {path}: expected token windows saved by numpy.save") from error
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"cannot read {path} as a NumPy array of token windows: {error}") from error


def _cut(windows: np.ndarray, length: int | None, limit: int | None) -> np.ndarray:
    """Return the first `length + 1` tokens of at most `limit` evenly spaced windows of an array, (N, T + 1)."""
    if windows.ndim != 2:
        raise DataError(f"token windows of shape {windows.shape}: expected (N, T + 1)")
    if length is not None and windows.shape[1] < length + 1:
        width = windows.shape[1]
        raise DataError(f"windows of {width} tokens: expected at least {length + 1} for a length of {length}")
    count = min(limit or len(windows), len(windows))
    chosen = np.arange(count) * len(windows) // max(count, 1)
    return windows[chosen, : None if length is None else length + 1]
