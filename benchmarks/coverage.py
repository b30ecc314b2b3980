"""How often a 95 % interval of the mean holds the truth when the windows of a document resemble each other.

    python benchmarks/coverage.py                       # 2,000 data sets a row
    python benchmarks/coverage.py --sets 20000

Each data set is what a paired comparison sees: a difference of losses for each window, whose true mean is 0. A document
has an effect of its own, which its windows share, and windows have noise beside it. Three intervals are counted: the t
interval that takes windows as independent, the package's, which is of documents, and a bootstrap that draws documents
with replacement (its 2.5 % and 97.5 % points), each with the windows that begin in it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np

from inheritune.data import window_documents
from inheritune.evaluation.paired import mean_interval

Draw = Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray]]
"""Makes the values of windows, (N,) float64, and their documents, (N,), or the first and the last of each, (N, 2)."""

LENGTH = 64
"""Tokens of a window that is cut from packed documents."""


def whole(documents: int, sizes: float, spread: float, effect: float, one: bool = False) -> Draw:
    """Return data sets of `documents` that are each cut into windows of their own.

    The number of windows of a document is log-normal, its median `sizes`, the deviation of its logarithm `spread`,
    rounded up; `one` makes the first as large as all others together. `effect` is the deviation of the documents'
    effects where that of a window's noise is 1.
    """

    def draw(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        counts = np.ceil(generator.lognormal(np.log(sizes), spread, documents)).astype(int)
        counts[0] = counts[1:].sum() if one else counts[0]
        values = np.repeat(generator.normal(0, effect, documents), counts)
        return values + generator.normal(0, 1, len(values)), np.repeat(np.arange(documents), counts)

    return draw


def packed(documents: int, sizes: float, spread: float, effect: float) -> Draw:
    """Return data sets of `documents` that are packed one behind the other and cut into windows across their bounds.

    As `whole`, but of a number of tokens, median `sizes` windows; a window has each document's effect by its share.
    """

    def draw(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        counts = np.ceil(generator.lognormal(np.log(LENGTH * sizes), spread, documents)).astype(int)
        text = np.ones(counts.sum(), dtype=np.int64)
        text[np.cumsum(counts) - 1] = 0  # the end of each document
        groups = window_documents(text, 0, LENGTH, len(text), "the simulation")
        effects = np.repeat(generator.normal(0, effect, documents), counts)[1 : 1 + len(groups) * LENGTH]
        return effects.reshape(-1, LENGTH).mean(1) + generator.normal(0, 1, len(groups)), groups

    return draw


CASES: dict[str, Draw] = {
    "100 documents of 1 window": whole(100, 1, 0, 1),
    "40 documents of 6 windows": whole(40, 6, 0, 1),
    "40 documents of about 6": whole(40, 6, 0.8, 1),
    "200 documents of about 6": whole(200, 6, 0.8, 1),
    "100 very unequal documents of about 6": whole(100, 6, 1.2, 1),
    "60 of about 6 and one as large as all others": whole(60, 6, 0.8, 1, one=True),
    "40 of about 6, packed": packed(40, 6, 0.8, 1),
    "80 of about 6, packed": packed(80, 6, 0.8, 1),
    "150 of about 2, packed": packed(150, 2, 0.8, 1),
    "150 of about 1, packed": packed(150, 1, 0.8, 2),
    "400 of about 1/4, packed": packed(400, 0.25, 0.8, 4),
}


def coverage(draw: Draw, sets: int, seed: int = 0, resamples: int = 999) -> np.ndarray:
    """Return the share of intervals that hold 0 over `sets` data sets: plain, of documents, bootstrap, (3,) float64."""
    generator = np.random.default_rng(seed)
    held = np.zeros(3)
    for _ in range(sets):
        values, groups = draw(generator)
        plain, documents = mean_interval(values, 0.95), mean_interval(values, 0.95, groups)
        begins = groups if groups.ndim == 1 else groups[:, 0]
        intervals = plain[:2], documents[:2], bootstrap(values, begins, resamples, generator)
        held += [low <= 0 <= high for low, high in intervals]
    return held / sets


def bootstrap(
    values: np.ndarray, groups: np.ndarray, resamples: int, generator: np.random.Generator
) -> tuple[float, float]:
    """Return the percentile interval of the mean over `resamples` draws of as many documents, with replacement."""
    numbers = np.unique(groups, return_inverse=True)[1]
    counts, sums = np.bincount(numbers), np.bincount(numbers, values)
    drawn = generator.integers(0, len(counts), (resamples, len(counts)))
    low, high = np.quantile(sums[drawn].sum(1) / counts[drawn].sum(1), [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=2000)
    options = parser.parse_args()
    print(f"coverage of 95 % intervals, {options.sets:,} data sets a row\n")
    print("| documents | windows as independent | of documents | document bootstrap |\n|---|---|---|---|")
    for name, draw in CASES.items():
        print(f"| {name} | " + " | ".join(f"{100 * share:.1f} %" for share in coverage(draw, options.sets)) + " |")


if __name__ == "__main__":
    main()
