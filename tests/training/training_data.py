"""Shards of random tokens to train on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from inheritune.data import Shards, open_shards
from inheritune.data.shards import write_split
from inheritune.records.runs import Manifest, PrepareSettings, Splits
from tiny import VOCABULARY


def make_shards(folder: Path) -> Shards:
    """Write shards of 3,000 random tokens into `folder`, which is made."""
    folder.mkdir()
    dtype = np.dtype("<u2")
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, 3000)
    train, valid = (write_split(folder, name, [tokens], dtype) for name in ("train", "valid"))
    made = PrepareSettings(source="", tokenizer="", valid_fraction=0.5, separator="", field="")
    splits = Splits(train=train, valid=valid)
    Manifest(dtype=dtype.str, vocabulary=VOCABULARY, splits=splits, settings=made).write(folder / "manifest.json")
    return open_shards(folder)
