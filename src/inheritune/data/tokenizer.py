"""Tokenizers: a model's own, or a byte-level BPE trained on the corpus itself."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from inheritune.data.readers import END_OF_TEXT
from inheritune.decoder import load_tokenizer
from inheritune.errors import DataError, library_errors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TRAIN_PREFIX = "train:"
BATCH_TEXTS = 64
MIN_VOCABULARY = 257  # 256 bytes and the end of text
MAX_VOCABULARY = 1 << 31


@dataclass(frozen=True)
class NamedTokenizer:
    """The tokenizer of a model or of shards, and what to call it in an error."""

    name: str
    tokenizer: PreTrainedTokenizerBase


def check_same_vocabulary(tokenizers: Sequence[NamedTokenizer]) -> None:
    """Refuse tokenizers that number tokens differently: their models' losses are about different things.

    Raises:
        DataError: two vocabularies differ.
    """
    for other in tokenizers[1:]:
        first = tokenizers[0]
        ours, theirs = first.tokenizer.get_vocab(), other.tokenizer.get_vocab()
        if ours == theirs:
            continue
        differing = len(dict(ours.items() ^ theirs.items()))
        sizes = f"{first.name} has a vocabulary of {len(ours)} tokens, {other.name} one of {len(theirs)}"
        raise DataError(f"{sizes} ({differing} differ): expected models and data of one vocabulary")


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return one more than the largest token id; `len(tokenizer)` is less where ids have gaps."""
    return 1 + max([*tokenizer.get_vocab().values(), *tokenizer.added_tokens_decoder])


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a SHA-256 of what makes tokens of text: equal ones make equal tokens, wherever the tokenizer lies.

    Of a tokenizer in Python alone only the vocabulary is known.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    held = tokenizer.get_vocab() if backend is None else json.loads(backend.to_str())
    told = {key: value for key, value in held.items() if backend is None or key not in ("truncation", "padding")}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerBase:
    """Train a byte-level BPE tokenizer of `vocabulary` tokens; token 0 is the end of text.

    Every byte is in the alphabet, so any text can be encoded and decoded without loss.

    Raises:
        DataError: `vocabulary` is smaller than the 256 bytes and the end of text, or beyond any use.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if not MIN_VOCABULARY <= vocabulary <= MAX_VOCABULARY:
        raise DataError(f"a vocabulary of {vocabulary} tokens: expected {MIN_VOCABULARY} to {MAX_VOCABULARY}")
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
    if not (size.isascii() and size.isdecimal() and len(size) < 20):
        raise DataError(f"tokenizer {name!r}: expected a number behind 'train:', for example 'train:2048'")
    return train_tokenizer(texts, int(size))


def document_mark(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id of the token that stands at the bounds of documents in what `encode` makes."""
    return int([*_ids([""], tokenizer)[0], tokenizer.eos_token_id][0])


def encode(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[np.ndarray]:
    """Yield the tokens of each text, int64 of shape (tokens,), with what marks a document's bounds for this tokenizer.

    A tokenizer that puts a special token before or behind a text by itself (Llama's `<s>`) is left to it; behind the
    others (GPT-2) comes the end-of-text token, as models of that family were trained.

    Raises:
        DataError: the tokenizer marks no bounds and has no end-of-text token, or cannot encode a text.
    """
    marks_bounds = bool(_ids([""], tokenizer)[0])
    end = [] if marks_bounds else [tokenizer.eos_token_id]
    if end == [None]:
        raise DataError("the tokenizer has no end-of-text token: expected one with eos_token set")
    iterator = iter(texts)
    while batch := list(itertools.islice(iterator, BATCH_TEXTS)):
        for ids in _ids(batch, tokenizer):
            yield np.array([*ids, *end], dtype=np.int64)


def _ids(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    with library_errors("the tokenizer cannot encode the text", kind=DataError):
        # A document longer than the model's context is no mistake here, so the tokenizer is told not to warn of it.
        ids: list[list[int]] = tokenizer(texts, verbose=False)["input_ids"]
    return ids
