"""The paired comparison, against SciPy, numbers worked out by hand, and simulation."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from scipy import stats

from inheritune.errors import DataError
from inheritune.evaluation import compare


@pytest.mark.parametrize("count", [2, 3, 40])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
def test_equals_scipy(count: int, confidence: float) -> None:
    generator = np.random.default_rng(count)
    reference = generator.normal(3, 0.5, count)
    target = reference + generator.normal(0.02, 0.03, count)
    ours = compare(target, reference, confidence=confidence)
    oracle = stats.ttest_rel(target, reference)
    interval = oracle.confidence_interval(confidence)
    assert ours.p_value == pytest.approx(oracle.pvalue, rel=1e-9)
    assert (ours.ci_low, ours.ci_high) == pytest.approx((interval.low, interval.high), rel=1e-9)
    assert (ours.windows, ours.confidence) == (count, confidence)


def test_equals_numbers_worked_out_by_hand() -> None:
    # Differences 1, 2, 3: mean 2, deviation 1, error 1/sqrt(3). With 2 degrees of freedom the t distribution has a
    # closed form: its 97.5 % point is 0.95 sqrt(2 / (1 - 0.95^2)) and P(|t| > x) = 1 - x / sqrt(2 + x^2).
    ours = compare(np.array([11.0, 22.0, 33.0]), np.array([10.0, 20.0, 30.0]))
    half = 0.95 * math.sqrt(2 / (1 - 0.95**2)) / math.sqrt(3)
    statistic = 2 * math.sqrt(3)
    assert ours.difference == 2
    assert (ours.ci_low, ours.ci_high) == pytest.approx((2 - half, 2 + half), rel=1e-9)
    assert ours.p_value == pytest.approx(1 - statistic / math.sqrt(2 + statistic**2), rel=1e-9)


def test_matches_is_about_the_upper_end_of_the_interval() -> None:
    generator = np.random.default_rng(1)
    reference = generator.normal(3, 0.5, 400)
    spread = generator.normal(0, 0.02, 400)
    spread -= spread.mean()
    half = compare(reference + spread, reference).ci_high  # the mean difference is 0, so this is half the width
    assert 0.001 < half < 0.003
    assert compare(reference + spread + 0.0099 - half, reference).matches
    assert not compare(reference + spread + 0.0101 - half, reference).matches
    assert compare(reference + spread + 0.0101 - half, reference, margin=0.02).matches
    assert compare(reference + spread - 1, reference).matches


def test_no_significant_difference_is_not_a_match() -> None:
    reference = np.full(4, 3.0)
    ours = compare(reference + np.array([0.3, -0.2, 0.1, -0.1]), reference)
    assert ours.p_value > 0.5
    assert not ours.matches


def test_coverage_of_the_interval() -> None:
    """Of 1,000 intervals for a true difference of 0.01, 950 +- 4 binomial standard deviations (27.6) hold it."""
    generator = np.random.default_rng(2)
    hits = matched = 0
    for _ in range(1000):
        reference = generator.normal(3, 0.5, 25)
        ours = compare(reference + generator.normal(0.01, 0.02, 25), reference)
        hits += ours.ci_low <= 0.01 <= ours.ci_high
        matched += ours.matches
    assert 922 <= hits <= 978
    # A target exactly on the margin matches by mistake in 2.5 % of trials: 25 +- 4 standard deviations (4.9).
    assert 6 <= matched <= 44


def test_a_model_against_itself() -> None:
    losses = np.array([3.1, 2.9, 3.3])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = compare(losses, losses, margin=0.0)
    assert (ours.difference, ours.ci_low, ours.ci_high, ours.p_value) == (0, 0, 0, 1)
    assert ours.matches


def test_a_difference_without_spread_is_certain() -> None:
    ours = compare(np.array([3.5, 2.5, 4.5]), np.array([3.0, 2.0, 4.0]))
    assert (ours.ci_low, ours.ci_high, ours.p_value, ours.matches) == (0.5, 0.5, 0, False)


@pytest.mark.parametrize("spread", [1e-17, 1e-16, 1e-15, 1e-12])
def test_a_difference_of_rounding_alone_warns_of_nothing(spread: float) -> None:
    """The differences are equal but for their last bits."""
    reference = np.random.default_rng(3).normal(3, 0.5, 50)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = compare(reference + 0.25 + spread * np.arange(50), reference)
    assert ours.ci_low == pytest.approx(0.25, abs=1e-9)
    assert ours.ci_high == pytest.approx(0.25, abs=1e-9)
    assert ours.p_value < 1e-30


def test_record_holds_plain_values() -> None:
    record = compare(np.array([3.0, 3.1, 2.7]), np.array([3.1, 3.1, 2.9])).as_json()
    types = {name: type(value) for name, value in record.items()}
    numbers = dict.fromkeys(("difference", "ci_low", "ci_high", "confidence", "p_value", "freedom", "margin"), float)
    assert types == {**numbers, "windows": int, "clusters": type(None), "matches": bool}


@pytest.mark.parametrize(
    ("target", "reference", "settings", "message"),
    [
        ([1.0, 2.0], [1.0, 2.0, 3.0], {}, r"shape \(2,\) of the target and \(3,\) of the reference"),
        ([1.0], [1.0], {}, r"too few windows \(1\): expected at least 2"),
        ([], [], {}, r"too few windows \(0\): expected at least 2"),
        ([1.0, float("nan")], [1.0, 2.0], {}, "not finite"),
        ([1.0, 2.0], [1.0, 2.0], {"margin": -0.1}, "margin of -0.1 nats"),
        ([1.0, 2.0], [1.0, 2.0], {"margin": float("nan")}, "margin of nan nats"),
        ([1.0, 2.0], [1.0, 2.0], {"confidence": 95.0}, "confidence of 95.0: expected a level between 0 and 1"),
    ],
)
def test_mistakes_are_one_line(target: list, reference: list, settings: dict, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        compare(np.array(target), np.array(reference), **settings)
    assert "\n" not in str(caught.value)
