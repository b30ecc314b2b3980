"""Windows and batches against what a person would compute by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from inheritune.data import (
    Shards,
    TrainingWindows,
    prepare,
    sample_windows,
    tuning_windows,
    validation_windows,
)
from inheritune.decoder import load_tokenizer
from inheritune.errors import DataError

# -- windows --------------------------------------------------------------------------------------------------------


def test_validation_windows_share_no_target_and_spread_over_the_split(shards: Shards) -> None:
    tokenizer = load_tokenizer(shards.tokenizer)
    tokens = shards.read("valid", 0, shards.tokens("valid"))
    every = validation_windows(shards, tokenizer, 8, 10**6)
    assert every.shape == ((len(tokens) - 1) // 8, 9)
    np.testing.assert_array_equal(every[:, 1:].ravel(), tokens[1 : 1 + every.shape[0] * 8])
    few = validation_windows(shards.folder, tokenizer, 8, 5)
    places = [int(np.flatnonzero((every == window).all(1))[0]) for window in few]
    # floor(i * windows / 5)
    assert places == [i * len(every) // 5 for i in range(5)]


def test_too_few_tokens_for_one_window_is_one_line(shards: Shards) -> None:
    count = shards.tokens("valid")
    tokenizer = load_tokenizer(shards.tokenizer)
    with pytest.raises(DataError, match=f"has {count} validation tokens: expected at least {count + 1}, one window"):
        validation_windows(shards, tokenizer, count, 10)
    assert validation_windows(shards, tokenizer, count - 1, 10).shape == (1, count)


def test_tuning_windows_are_spread_over_the_training_split(shards: Shards) -> None:
    tokenizer = load_tokenizer(shards.tokenizer)
    tokens = shards.read("train", 0, shards.tokens("train"))
    every = tuning_windows(shards.folder, tokenizer, 8, 10**6)
    assert every.dtype == np.int64
    assert every.shape == ((len(tokens) - 1) // 8, 9)
    np.testing.assert_array_equal(every[:, 1:].ravel(), tokens[1 : 1 + every.shape[0] * 8])
    few = tuning_windows(shards, tokenizer, 8, 5)
    np.testing.assert_array_equal(few, every[[i * len(every) // 5 for i in range(5)]])
    with pytest.raises(DataError, match=f"has {len(tokens)} training tokens: expected at least {len(tokens) + 1}"):
        tuning_windows(shards, tokenizer, len(tokens), 10)


def test_tuning_windows_of_a_text_are_of_what_is_trained_on_by_default(corpus: Path, tmp_path: Path) -> None:
    shards = prepare(corpus, tmp_path / "shards", "train:300")
    assert shards.manifest.splits.valid.documents > 0
    tokenizer = load_tokenizer(shards.tokenizer)
    np.testing.assert_array_equal(
        tuning_windows(corpus, tokenizer, 8, 10**6), tuning_windows(shards, tokenizer, 8, 10**6)
    )


def test_sampled_windows_are_the_seed_s_own(shards: Shards) -> None:
    tokenizer = load_tokenizer(shards.tokenizer)
    tokens = shards.read("valid", 0, shards.tokens("valid"))
    one, same, other = (sample_windows(shards, tokenizer, 6, 10, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    windows = np.lib.stride_tricks.sliding_window_view(tokens, 10)
    assert all((windows == window).all(1).any() for window in one)


# -- batches --------------------------------------------------------------------------------------------------------


def test_an_epoch_visits_each_window_once_in_a_new_order(shards: Shards) -> None:
    data = TrainingWindows(shards, 8, 10**6, seed=3)
    epochs = [[data.start(e * data.windows + i) for i in range(data.windows)] for e in (0, 1)]
    for starts in epochs:
        assert sorted(starts) == [8 * i for i in range(data.windows)]
    assert epochs[0] != epochs[1]
    tokens = shards.read("train", 0, shards.tokens("train"))
    np.testing.assert_array_equal(data[5]["tokens"], tokens[epochs[0][5] : epochs[0][5] + 9])


@pytest.mark.parametrize("order", ["shuffle", "replacement"])
def test_a_sample_depends_on_seed_and_number_alone(shards: Shards, order: str) -> None:
    one = TrainingWindows(shards, 8, 1000, seed=3, order=order)
    late = TrainingWindows(shards, 8, 10, seed=3, order=order, first=990)
    np.testing.assert_array_equal(one[997]["tokens"], late[7]["tokens"])
    assert [one.start(n) for n in range(20)] != [
        TrainingWindows(shards, 8, 1000, seed=4, order=order).start(n) for n in range(20)
    ]


def test_replacement_is_uniform_over_all_starts(shards: Shards) -> None:
    data = TrainingWindows(shards, 8, 20000, seed=0, order="replacement")
    starts = np.array([data.start(n) for n in range(20000)])
    places = shards.tokens("train") - 8
    assert (starts.min(), starts.max()) == (0, places - 1)
    # The mean of a uniform draw has standard error places / sqrt(12 n); four of them.
    assert abs(starts.mean() - (places - 1) / 2) < 4 * places / np.sqrt(12 * 20000)


def test_an_unknown_order_is_one_line(shards: Shards) -> None:
    with pytest.raises(DataError, match=r"unknown order 'shufle': .*; did you mean 'shuffle'"):
        TrainingWindows(shards, 8, 10, seed=0, order="shufle")
