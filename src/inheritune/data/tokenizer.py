"""Tokenizers: a model's own, or a byte-level BPE trained on the corpus itself."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from inheritune.data.sources import END_OF_TEXT
from inheritune.decoder import load_tokenizer
from inheritune.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TRAIN_PREFIX = "train:"
BATCH_TEXTS = 64
MIN_VOCABULARY = 257  # 256 bytes and the end of text


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerBase:
    """Train a byte-level BPE tokenizer of `vocabulary` tokens; token 0 is the end of text.

    Every byte is in the alphabet, so any text can be encoded and decoded without loss.

    Raises:
        DataError: `vocabulary` is smaller than the 256 bytes and the end of text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if vocabulary < MIN_VOCABULARY:
        raise DataError(f"a vocabulary of {vocabulary} is too small: expected at least {MIN_VOCABULARY}")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT)


def resolve_tokenizer(spec: str | Path, texts: Iterable[str]) -> PreTrainedTokenizerBase:
    """Return the tokenizer that `spec` names: `"train:2048"` trains one on `texts`, anything else is loaded.

    Raises:
        DataError: the size behind `train:` is not a number.
        ModelError: there is no tokenizer at `spec`.
    """
    name = str(spec)
    if not name.startswith(TRAIN_PREFIX):
        return load_tokenizer(spec)
    size = name.removeprefix(TRAIN_PREFIX)
    if not size.isdigit():
        raise DataError(f"tokenizer {name!r}: expected a number behind 'train:', for example 'train:2048'")
    return train_tokenizer(texts, int(size))


def encode(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[np.ndarray]:
    """Yield the tokens of each text, int64, with what marks a document's bounds for this tokenizer.

    A tokenizer that puts a special token before or behind a text by itself (Llama's `<s>`) is left to it; behind the
    others (GPT-2) comes the end-of-text token, as models of that family were trained.

    Raises:
        DataError: the tokenizer marks no bounds and has no end-of-text token.
    """
    marks_bounds = bool(tokenizer("")["input_ids"])
    end = [] if marks_bounds else [tokenizer.eos_token_id]
    if end == [None]:
        raise DataError("the tokenizer has no end-of-text token: expected one with eos_token set")
    iterator = iter(texts)
    while batch := list(itertools.islice(iterator, BATCH_TEXTS)):
        # A document longer than the model's context is no mistake here, so the tokenizer is told not to warn of it.
        for ids in tokenizer(batch, verbose=False)["input_ids"]:
            yield np.array([*ids, *end], dtype=np.int64)
