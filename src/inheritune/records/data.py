"""`manifest.json`: the token shards of one folder."""

from __future__ import annotations

from inheritune.records.base import Document, Record


class ShardFile(Record):
    """One file of token ids."""

    name: str
    tokens: int
    sha256: str


class Split(Record):
    """The training or the validation part of a corpus."""

    tokens: int
    shards: tuple[ShardFile, ...]
    documents: int | None = None


class Splits(Record):
    """Both parts."""

    train: Split
    valid: Split


class SourceFile(Record):
    """A file that text was read from."""

    path: str
    bytes: int
    sha256: str


class PrepareSettings(Record):
    """What decides which tokens come out of a source."""

    source: str
    tokenizer: str
    validation: str | None = None
    valid_fraction: float
    separator: str
    field: str


class Manifest(Document):
    """`manifest.json`, the last file of a folder of token shards."""

    KIND = "shards"
    AGAIN = "run inheritune prepare again, into a new folder"

    dtype: str
    vocabulary: int
    splits: Splits
    settings: PrepareSettings
    sources: tuple[SourceFile, ...] | None = None
    """What the source's files were; None in shards of version 0.1."""
