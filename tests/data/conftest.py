"""Fixtures of the data's tests: a small corpus, and its shards."""

from __future__ import annotations

from pathlib import Path

import pytest
from corpus_texts import TEXTS

from inheritune.data import Shards, prepare


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("\n\n".join(TEXTS))
    return path


@pytest.fixture
def shards(corpus: Path, tmp_path: Path) -> Shards:
    return prepare(corpus, tmp_path / "shards", "train:300", valid_fraction=0.2)
