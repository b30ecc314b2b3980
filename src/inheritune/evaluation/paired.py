"""The paired comparison of two models on the same windows: does the target match the reference?

Windows differ in difficulty far more than two models differ on one window, and in the difference of each window the
difficulty cancels. That a test finds no difference is no evidence that there is none (with few windows it never finds
one), so "matches" is a test of non-inferiority: the whole confidence interval of
`target - reference` must lie below a margin. The margin is 0.01 nats per token unless told otherwise because the paper
prints losses to two decimals (Tables 2, 3, 5) and calls equal what is equal there: a target that is worse by less than
that is, on paper, no worse.

The interval takes windows as independent draws. Neighbouring windows of one document resemble each other, and then the
interval is a little too narrow; evenly spaced windows from many documents keep that small.
"""

from __future__ import annotations

import math

import numpy as np

from inheritune.errors import DataError
from inheritune.records.evaluation import Comparison

MARGIN = 0.01
"""Nats per token by which a target may be worse and still match: one unit of the last decimal that the paper prints."""
CONFIDENCE = 0.95


def compare(
    target_losses: np.ndarray, reference_losses: np.ndarray, margin: float = MARGIN, confidence: float = CONFIDENCE
) -> Comparison:
    """Compare two models by their losses on the same windows, in the same order.

    Args:
        target_losses: (N,) nats per token, N at least 2.
        reference_losses: (N,) nats per token of the same windows.
        margin: by how many nats per token the target may be worse and still match.
        confidence: the level of the two-sided t interval, between 0 and 1.

    Raises:
        DataError: the losses are not two finite vectors of one length, at least 2, or a setting is out of range.
    """
    target, reference = (np.asarray(losses, dtype=np.float64) for losses in (target_losses, reference_losses))
    if target.ndim != 1 or target.shape != reference.shape:
        shapes = f"{target.shape} of the target and {reference.shape} of the reference"
        raise DataError(f"losses of shape {shapes}: expected one loss for each of the same windows")
    if not (np.isfinite(target).all() and np.isfinite(reference).all()):
        raise DataError("some losses are not finite numbers: expected nats per token")
    check_settings(len(target), margin, confidence)
    differences = target - reference
    low, high, p_value = mean_interval(differences, confidence)
    return Comparison(
        difference=float(differences.mean()),
        ci_low=low,
        ci_high=high,
        confidence=confidence,
        p_value=p_value,
        windows=len(differences),
        margin=margin,
        matches=high <= margin,
    )


def mean_interval(values: np.ndarray, confidence: float) -> tuple[float, float, float]:
    """Return the two-sided t interval of the mean of `values`, and the p-value of its being zero.

    The values are (N,) float64, N at least 2; where they are equal but for rounding the mean is taken for certain.
    """
    from scipy import stats

    mean = float(values.mean())
    if np.abs(values - mean).max() <= 10 * np.finfo(np.float64).eps * abs(mean):  # where SciPy warns
        return mean, mean, float(mean == 0)
    test = stats.ttest_1samp(values, 0.0)
    interval = test.confidence_interval(confidence)
    return float(interval.low), float(interval.high), float(test.pvalue)


def check_settings(windows: int, margin: float, confidence: float) -> None:
    """Refuse a comparison that means nothing, before anything is evaluated for it.

    Raises:
        DataError: fewer than 2 windows, `margin` negative or not finite, or `confidence` not between 0 and 1.
    """
    if windows < 2:
        raise DataError(f"too few windows ({windows}): expected at least 2, a paired comparison needs their spread")
    if not (math.isfinite(margin) and margin >= 0):
        raise DataError(f"a margin of {margin} nats: expected 0 or more, for example {MARGIN}")
    if not 0 < confidence < 1:
        raise DataError(f"a confidence of {confidence}: expected a level between 0 and 1, for example {CONFIDENCE}")
