"""`manifest.json`: the token shards of one folder."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

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
    documents: int = 0


class Splits(Record):
    """Both parts."""

    train: Split
    valid: Split


class SourceContent(Record):
    """What the files of a source were when they were read."""

    files: int
    bytes: int
    sha256: str  # of the file; of a folder, of a list of its files as `sha256sum` writes it


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

    dtype: Annotated[str, Field(pattern="^<u[24]$")]
    vocabulary: int  # one more than the largest token id of the tokenizer
    splits: Splits
    settings: PrepareSettings
    sources: dict[str, SourceContent] = {}
    """The content of `source` and `validation`; not known of data sets of the hub and in shards of version 0.1."""
    tokenizer_sha256: str | None = None  # `tokenizer_digest` of the tokenizer; None in shards of version 0.1
