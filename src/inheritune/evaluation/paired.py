"""The paired comparison of two models on the same windows: does the target match the reference?

Windows differ in difficulty far more than two models differ on one window, so the test is on the difference of each
window, where the difficulty cancels. That a test finds no difference is no evidence that there is none (with few
windows it never finds one), so "matches" is a test of non-inferiority: the whole confidence interval of
`target - reference` must lie below a margin. The margin is 0.01 nats per token unless told otherwise because the paper
prints losses to two decimals (Tables 2, 3, 5) and calls equal what is equal there: a target that is worse by less than
that is, on paper, no worse.

The interval takes windows as independent draws. Neighbouring windows of one document resemble each other, and then the
interval is a little too narrow; evenly spaced windows from many documents keep that small.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from inheritune.errors import DataError

MARGIN = 0.01
"""Nats per token by which a target may be worse and still match: one unit of the last decimal that the paper prints."""
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Comparison:
    """What the paired test says; all losses in nats per token.

    Attributes:
        difference: mean of target minus reference; below zero the target is better.
        ci_low: lower end of the two-sided confidence interval of `difference`.
        ci_high: its upper end.
        confidence: the level of the interval.
        p_value: of the two-sided paired t test that the difference is zero.
        windows: N, the number of pairs.
        margin: by how much the target may be worse.
        matches: whether `ci_high <= margin`.
    """

    difference: float
    ci_low: float
    ci_high: float
    confidence: float
    p_value: float
    windows: int
    margin: float
    matches: bool

    def as_record(self) -> dict[str, Any]:
        """Return the numbers for a record."""
        return asdict(self)


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
    target, reference = np.asarray(target_losses, dtype=np.float64), np.asarray(reference_losses, dtype=np.float64)
    _check_losses(target, reference)
    check_settings(len(target), margin, confidence)
    differences = target - reference
    mean = float(differences.mean())
    error = float(differences.std(ddof=1) / math.sqrt(len(differences)))
    half_width, p_value = _t_test(mean, error, len(differences) - 1, confidence)
    low, high = mean - half_width, mean + half_width
    return Comparison(mean, low, high, confidence, p_value, len(differences), margin, high <= margin)


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


def _check_losses(target: np.ndarray, reference: np.ndarray) -> None:
    if target.ndim != 1 or target.shape != reference.shape:
        shapes = f"{target.shape} of the target and {reference.shape} of the reference"
        raise DataError(f"losses of shape {shapes}: expected one loss for each of the same windows")
    if not (np.isfinite(target).all() and np.isfinite(reference).all()):
        raise DataError("some losses are not finite numbers: expected nats per token")


def _t_test(mean: float, error: float, freedom: int, confidence: float) -> tuple[float, float]:
    """Return half the width of the t interval and the two-sided p-value; a difference without spread is certain."""
    from scipy import stats

    if error == 0:
        return 0.0, 1.0 if mean == 0 else 0.0
    half_width = float(stats.t.ppf((1 + confidence) / 2, freedom)) * error
    return half_width, float(2 * stats.t.sf(abs(mean) / error, freedom))
