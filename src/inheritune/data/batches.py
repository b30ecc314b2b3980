"""Training batches as a pure function of (seed, step): no state, no replay, the same on any number of devices."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch.utils.data import Dataset

from inheritune.data.shards import Shards
from inheritune.errors import DataError, unknown_name

ORDERS = ("shuffle", "replacement")


class TrainingWindows(Dataset[dict[str, torch.Tensor]]):
    """The samples of a whole training run: sample n is row `n % batch` of step `n // batch`.

    `"shuffle"` cuts the split into windows that do not overlap in their targets and visits each once an epoch, in an
    order drawn anew for every epoch (the paper's FineWeb-Edu runs sample without replacement). `"replacement"` draws
    every window's start uniformly and independently (its OpenWebText runs). Both depend on (seed, n) alone.
    """

    def __init__(
        self, shards: Shards, length: int, samples: int, seed: int, order: str = "shuffle", first: int = 0
    ) -> None:
        """Make the samples.

        Args:
            shards: the token shards; the training split is used.
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
        self.windows = (shards.tokens("train") - 1) // length
        if self.windows < 1:
            have = shards.tokens("train")
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
