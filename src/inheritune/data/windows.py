"""Windows of tokens: fixed ones for evaluation and analysis, and the batches of training."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import Dataset

from inheritune.data.readers import BLANK_LINE
from inheritune.data.shards import Shards, is_shards, open_shards
from inheritune.data.sources import STDLIB, VALID_FRACTION, Document, read_documents
from inheritune.data.tokenizer import encode
from inheritune.errors import DataError, unknown_name
from inheritune.progress import note

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ORDERS = ("shuffle", "replacement")

LONGEST, SHORTEST = 512, 64
"""Input tokens of a window unless told otherwise: the memory of a batch is bounded, and more context changes little."""
ENOUGH_WINDOWS = 8
"""Fewer make a poor interval; halving the windows further costs context (0.1 nats a halving on a small Llama)."""


class TrainingWindows(Dataset[dict[str, torch.Tensor]]):
    """The samples of a whole training run: sample n is row `n % batch` of step `n // batch`.

    `"shuffle"` cuts the split into windows that do not overlap in their targets and visits each once an epoch, in an
    order drawn anew for every epoch (the paper's FineWeb-Edu runs sample without replacement). `"replacement"` draws
    every window's start uniformly and independently (its OpenWebText runs). Both depend on (seed, n) alone: no state,
    no replay, the same on any number of devices.
    """

    def __init__(
        self, shards: Shards, length: int, samples: int, seed: int, order: str = "shuffle", first: int = 0
    ) -> None:
        """Make the samples.

        Args:
            shards: their training split is used.
            length: input tokens of a window; a window has one token more.
            samples: steps x batch.
            seed: of the order.
            order: one of `ORDERS`.
            first: the number of this data set's sample 0, where a round goes on from the rounds before it.

        Raises:
            DataError: the order is unknown, or the training split has fewer tokens than one window.
        """
        if order not in ORDERS:
            raise DataError(unknown_name("order", order, ORDERS))
        self.shards, self.length, self.samples = shards, length, samples
        self.seed, self.order, self.first = seed, order, first
        have = shards.tokens("train")
        self.windows = (have - 1) // length
        if self.windows < 1:
            raise DataError(f"{shards.folder} has {have} training tokens: expected at least {length + 1}, one window")

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, n: int) -> dict[str, torch.Tensor]:
        """Return sample n: `tokens`, int64 of shape (length + 1,)."""
        return {"tokens": torch.from_numpy(self.shards.read("train", self.start(self.first + n), self.length + 1))}

    def start(self, n: int) -> int:
        """Return where sample n of the order starts in the training split."""
        if self.order == "replacement":
            last = self.shards.tokens("train") - self.length - 1
            # SeedSequence hashes its words, so neighbouring n give independent draws.
            return int(np.random.default_rng((self.seed, n)).integers(0, last + 1))
        epoch, place = divmod(n, self.windows)
        return int(_permutation(self.seed, epoch, self.windows)[place]) * self.length


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, windows: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(windows)


def fitting_length(context: int | None, tokens: int, enough: int = ENOUGH_WINDOWS) -> int:
    """Return the input tokens of a window: what the context allows, halved while `tokens` do not make `enough`."""
    length = min(context or LONGEST, LONGEST)
    while (tokens - 1) // length < enough and length // 2 >= SHORTEST:
        length //= 2
    return length


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
    return spread_windows(read_tokens(source, tokenizer), length, limit, source)


def tuning_windows(
    source: str | Path | Shards,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    limit: int,
    separator: str = BLANK_LINE,
    field: str = "text",
) -> np.ndarray:
    """Return at most `limit` windows to choose layers and settings on, spread evenly: none that judges is among them.

    They come from the training split of shards, or from training documents of a text as `prepare` splits it; of a text
    with too few of them, from all of it, which is said.

    Args:
        source: shards or any text source.
        tokenizer: what turns text into tokens; shards come with their own.
        length: input tokens of a window.
        limit: the greatest number of windows.
        separator: as `prepare` takes it.
        field: as `prepare` takes it.

    Returns:
        int64 of shape (windows, length + 1).

    Raises:
        DataError: there are fewer tokens than one window.
    """
    if not isinstance(source, Shards) and is_shards(source):
        source = open_shards(source)
    if isinstance(source, Shards):
        starts = spread_starts(source.tokens("train"), length, limit, f"{source} has {{}} training tokens")
        return np.stack([source.read("train", start, length + 1) for start in starts.tolist()])
    texts: dict[str, list[Document]] = {"tuning": [], "training": [], "all": []}
    missing = 16 * length * limit  # characters, of which a token hardly has more
    for document in read_documents(source, separator, field):
        share = document.position() / VALID_FRACTION
        if 1 <= share < 2:
            texts["tuning"].append(document)
            missing -= len(document.text)
        if missing > 0:
            texts["all"].append(document)
            if share >= 1:
                texts["training"].append(document)
    for name, chosen in texts.items():
        tokens = _encoded(chosen, tokenizer)
        if name == "all":
            note(f"{source} is too short to be split: layers are chosen on all of it; judge the result on other text")
        if len(tokens) > length * (limit if name == "tuning" else min(limit, 2)) or name == "all":
            break
    starts = spread_starts(len(tokens), length, limit, f"{source} has {{}} tokens")
    return tokens[starts[:, None] + np.arange(length + 1)]


def spread_windows(tokens: np.ndarray, length: int, limit: int, name: object) -> np.ndarray:
    """Return windows as `validation_windows` does, of tokens (tokens,) of `read_tokens`; `name` is for an error."""
    starts = spread_starts(len(tokens), length, limit, f"{name} has {{}} validation tokens")
    return tokens[starts[:, None] + np.arange(length + 1)]


def spread_starts(tokens: int, length: int, limit: int, what: str) -> np.ndarray:
    """Return where windows start, (windows,) int64: at most `limit`, evenly spread, the targets of none in another's.

    Raises:
        DataError: there are fewer tokens than one window; `what` says so, with a place for their number.
    """
    whole = (tokens - 1) // length
    if whole < 1:
        raise DataError(f"{what.format(tokens)}: expected at least {length + 1}, one window")
    return length * (np.arange(min(limit, whole)) * whole // min(limit, whole))


def window_documents(tokens: np.ndarray, mark: int, length: int, limit: int, name: object) -> np.ndarray:
    """Return the documents that the targets of each window of `spread_windows` begin and end in.

    Documents are numbered in their order, and the mark between two is the end of the first. Windows that share a
    document are not independent (`evaluation.paired`).

    Args:
        tokens: (tokens,) integers of `read_tokens`.
        mark: the token between two documents, see `document_mark`.
        length: as of `validation_windows`.
        limit: likewise.
        name: for an error.

    Returns:
        int64 of shape (windows, 2).
    """
    starts = spread_starts(len(tokens), length, limit, f"{name} has {{}} validation tokens")
    marks = np.cumsum(tokens == mark)
    return marks[np.stack([starts, starts + length - 1], axis=1)]


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
    return draw_windows(read_tokens(source, tokenizer), sequences, length, seed, source)


def draw_windows(tokens: np.ndarray, sequences: int, length: int, seed: int, name: object) -> np.ndarray:
    """Return windows as `sample_windows` does, of tokens (tokens,) of `read_tokens`; `name` is for an error."""
    places = len(tokens) - length + 1
    if places < 1:
        raise DataError(f"{name} has {len(tokens)} tokens: expected at least {length}, one sequence")
    generator = np.random.default_rng(seed)
    starts = generator.choice(places, size=sequences, replace=sequences > places)
    return tokens[starts[:, None] + np.arange(length)]


def read_tokens(
    source: str | Path | Shards, tokenizer: PreTrainedTokenizerBase, separator: str = BLANK_LINE, field: str = "text"
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
    return _encoded(documents, tokenizer)


def _encoded(documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Return the tokens of documents, one behind the other, int64 of shape (tokens,)."""
    parts = list(encode((document.text for document in documents), tokenizer))
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
