"""Sources of text -> tokens -> memory-mapped shards -> batches."""

from inheritune.data.prepare import prepare
from inheritune.data.shards import Shards, open_shards
from inheritune.data.sources import Document, read_documents
from inheritune.data.tokenizer import NamedTokenizer, check_same_vocabulary, resolve_tokenizer, train_tokenizer
from inheritune.data.windows import (
    TrainingWindows,
    draw_training_windows,
    draw_windows,
    read_tokens,
    sample_windows,
    spread_windows,
    validation_windows,
)

__all__ = [
    "Document",
    "NamedTokenizer",
    "Shards",
    "TrainingWindows",
    "check_same_vocabulary",
    "draw_training_windows",
    "draw_windows",
    "open_shards",
    "prepare",
    "read_documents",
    "read_tokens",
    "resolve_tokenizer",
    "sample_windows",
    "spread_windows",
    "train_tokenizer",
    "validation_windows",
]
