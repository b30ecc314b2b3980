"""The paired comparison of two models on the same windows: does the target match the reference?

Windows differ in difficulty far more than two models differ on one window, and in the difference of each window the
difficulty cancels. That a test finds no difference is no evidence that there is none (with few windows it never finds
one), so "matches" is a test of non-inferiority: the whole confidence interval of
`target - reference` must lie below a margin. The margin is 0.01 nats per token unless told otherwise because the paper
prints losses to two decimals (Tables 2, 3, 5) and calls equal what is equal there: a target that is worse by less than
that is, on paper, no worse.

Windows of one document resemble each other, and an interval that takes windows as independent is too narrow
(`docs/results/coverage.md` has by how much). So any two windows that share a document may depend on each other here,
and no others: the cluster-robust error of a mean (Cameron and Miller, A Practitioner's Guide to Cluster-Robust
Inference, 2015; for evaluations of language models Miller, arXiv 2411.00640). Windows are cut across documents, so one
may be in several clusters, and the sum goes over the pairs that share one, as in data about pairs (Aronow, Samii and
Assenova, arXiv 1312.3398). Windows whose documents are not known are taken as independent.
"""

import math

import numpy as np

from inheritune.errors import DataError
from inheritune.layers import plural
from inheritune.records.evaluation import Comparison

MARGIN = 0.01
"""Nats per token by which a target may be worse and still match: one unit of the last decimal that the paper prints."""
CONFIDENCE = 0.95
FEW_DOCUMENTS = 10
"""Equal ones; an interval over fewer is wide, and these documents say little of other text."""


def compare(
    target_losses: np.ndarray,
    reference_losses: np.ndarray,
    margin: float = MARGIN,
    confidence: float = CONFIDENCE,
    groups: np.ndarray | None = None,
) -> Comparison:
    """Compare two models by their losses on the same windows, in the same order.

    Args:
        target_losses: (N,) nats per token, N at least 2.
        reference_losses: (N,) nats per token of the same windows.
        margin: by how many nats per token the target may be worse and still match.
        confidence: the level of the two-sided t interval, between 0 and 1.
        groups: (N,) the number of each window's document, or (N, 2) those of its first and its last one where windows
            are cut across documents (`data.window_documents`); None takes windows as independent.

    Raises:
        DataError: the losses are not two finite vectors of one length, at least 2, the groups are of another shape or
            all windows share a document, or a setting is out of range.
    """
    target, reference = (np.asarray(losses, dtype=np.float64) for losses in (target_losses, reference_losses))
    if target.ndim != 1 or target.shape != reference.shape:
        shapes = f"{target.shape} of the target and {reference.shape} of the reference"
        raise DataError(f"losses of shape {shapes}: expected one loss for each of the same windows")
    if not (np.isfinite(target).all() and np.isfinite(reference).all()):
        raise DataError("some losses are not finite numbers: expected nats per token")
    if groups is not None and groups.shape not in (target.shape, (len(target), 2)):
        raise DataError(f"groups of shape {groups.shape}: expected the documents of each of {len(target)} windows")
    check_settings(len(target), margin, confidence, groups)
    differences = target - reference
    low, high, p_value = mean_interval(differences, confidence, groups)
    return Comparison(
        difference=float(differences.mean()),
        ci_low=low,
        ci_high=high,
        confidence=confidence,
        p_value=p_value,
        windows=len(differences),
        clusters=count_groups(groups),
        freedom=mean_error(differences, groups)[1],
        margin=margin,
        matches=high <= margin,
    )


def mean_interval(
    values: np.ndarray, confidence: float, groups: np.ndarray | None = None
) -> tuple[float, float, float]:
    """Return the two-sided t interval of the mean of `values`, and the p-value of its being zero.

    The values are (N,) float64, `groups` as of `compare`; where the error is 0 the mean is taken for certain.
    """
    from scipy import stats

    mean = float(values.mean())
    error, freedom = mean_error(values, groups)
    if error == 0:
        return mean, mean, float(mean == 0)
    half = float(stats.t.ppf((1 + confidence) / 2, freedom)) * error
    return mean - half, mean + half, float(2 * stats.t.sf(abs(mean) / error, freedom))


def mean_error(values: np.ndarray, groups: np.ndarray | None = None) -> tuple[float, float]:
    """Return the cluster-robust standard error of the mean of `values`, and its degrees of freedom.

    The variance is the sum of r_i r_j over the pairs that share a group (each with itself too), over N^2 (1 - p); r are
    the deviations from the mean, p is the share of such pairs among all N^2. Its expectation is right for independent
    values. The degrees of freedom are 1 / p - 1, at least 1: a few large groups among many small ones count as few.
    Without groups p is 1 / N, and both are the plain t test's; of G equal groups they are those of their means, G - 1.

    Args:
        values: (N,) float64.
        groups: as of `compare`. Where each value shares a group with every other, the error is infinite.
    """
    order, first, last = _sorted(np.arange(len(values)) if groups is None else groups)
    # Of those that share a document with a window, the first and the one behind the last.
    start, stop = np.searchsorted(last, first), np.searchsorted(first, last, "right")
    pairs = int((stop - start).sum()) / len(values) ** 2
    if pairs == 1:
        return math.inf, 1.0
    rest = (values - values.mean())[order]
    sums = np.concatenate([[0.0], np.cumsum(rest)])
    variance = float(rest @ (sums[stop] - sums[start]))
    if variance <= 0:  # possible by chance where values are in several groups each
        variance = float(rest @ rest)
    return math.sqrt(variance / (1 - pairs)) / len(values), max(1.0, 1 / pairs - 1)


def count_groups(groups: np.ndarray | None) -> int | None:
    """Return how many different documents there are in `groups` of `compare`; None where they are not known."""
    if groups is None:
        return None
    _, first, last = _sorted(groups)
    seen = np.concatenate([first[:1] - 1, last[:-1]])
    return int((last - np.maximum(first, seen + 1) + 1).sum())


def _sorted(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the windows in the order of their documents, and the first and the last document of each: (N,) integers.

    In that order those that share a document with a window are neighbours of it.
    """
    first, last = (groups, groups) if groups.ndim == 1 else (groups[:, 0], groups[:, 1])
    order = np.lexsort((last, first))
    return order, first[order], last[order]


def few_documents(clusters: int | None, freedom: float | None) -> str:
    """Say that windows are of few documents, or of few large ones; nothing where they are not, or not known.

    Args:
        clusters: of a `Comparison`.
        freedom: likewise; one more is the number of equal documents that would give it.
    """
    if clusters is None or freedom is None or freedom + 1 >= FEW_DOCUMENTS:
        return ""
    return f"{plural(clusters, 'document')} that count as {freedom + 1:.1f} equal ones (fewer than {FEW_DOCUMENTS})"


def check_settings(windows: int, margin: float, confidence: float, groups: np.ndarray | None = None) -> None:
    """Refuse a comparison that means nothing, before anything is evaluated for it.

    Raises:
        DataError: fewer than 2 windows, or each shares one of `groups` (as of `compare`) with every other, `margin`
            negative or not finite, or `confidence` not between 0 and 1.
    """
    if windows < 2:
        raise DataError(f"too few windows ({windows}): expected at least 2, a paired comparison needs their spread")
    if groups is not None and math.isinf(mean_error(np.zeros(windows), groups)[0]):
        raise DataError(
            f"too few documents ({count_groups(groups)} in {windows} windows, which all share one): a paired "
            "comparison needs their spread; take more text, a larger valid fraction, or another separator of documents"
        )
    if not (math.isfinite(margin) and margin >= 0):
        raise DataError(f"a margin of {margin} nats: expected 0 or more, for example {MARGIN}")
    if not 0 < confidence < 1:
        raise DataError(f"a confidence of {confidence}: expected a level between 0 and 1, for example {CONFIDENCE}")
