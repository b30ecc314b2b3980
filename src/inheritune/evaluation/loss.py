"""The loss of a model on fixed windows of tokens, and the paired comparison of two models on the same ones.

Every model is asked about the same windows, and a window's loss is one number, so that two models can be compared
window by window. The official code averages randomly drawn batches instead, whose own noise over the last evaluations
of one run is larger than many gaps in the paper's tables.

What repeats (measured on a CPU, and held by the tests): the same call gives the same bits. Another `batch` gives
matrix products of another shape, whose kernels may add in another order: a window's loss moved by at most 3e-7 nats
(four models, batches of 1 to 37), 1/30,000 of the margin of the comparison. The last group of windows is filled up to
the size of the others, so that for one `batch`, and at least that many windows, a window's loss depends neither on the
windows beside it nor on its place among them.

The comparison is paired: windows differ in difficulty far more than two models differ on one window, and in the
difference of each window the difficulty cancels. That a test finds no difference is no evidence that there is none
(with few windows it never finds one), so "matches" is a test of non-inferiority: the whole confidence interval of
`target - reference` must lie below a margin. The margin is 0.01 nats per token unless told otherwise because the paper
prints losses to two decimals (Tables 2, 3, 5) and calls equal what is equal there: a target that is worse by less than
that is, on paper, no worse.

The interval takes windows as independent draws. Neighbouring windows of one document resemble each other, and then the
interval is a little too narrow; evenly spaced windows from many documents keep that small.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from inheritune.decoder import evaluating, open_decoder
from inheritune.errors import DataError, ModelError
from inheritune.progress import progress
from inheritune.records.evaluation import Comparison, LossSummary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOGITS_PER_BATCH = 1 << 27
"""At most so many logits exist at a time (512 MB in float32); a batch that would make more is run in smaller ones."""
LOGITS_PER_CHUNK = 1 << 22
"""At most so many logits are copied to float32 for the cross-entropy at a time (16 MB, and as much for its result)."""
MARGIN = 0.01
"""Nats per token by which a target may be worse and still match: one unit of the last decimal that the paper prints."""
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Evaluation:
    """The loss of one model on fixed windows.

    Attributes:
        losses: mean next-token cross-entropy of each window, nats per token, (N,) float64.
        length: T, the number of predicted tokens of each window.
        data: what the windows are made of.
    """

    losses: np.ndarray = field(repr=False)
    length: int
    data: str

    @property
    def summary(self) -> LossSummary:
        """The numbers for a record; all windows have the same length, so their mean is the mean over tokens."""
        loss, windows = float(self.losses.mean()), len(self.losses)
        return LossSummary(
            loss=loss,
            standard_error=float(self.losses.std(ddof=1) / math.sqrt(windows)) if windows > 1 else None,
            perplexity=math.exp(loss) if loss < 700 else None,
            windows=windows,
            length=self.length,
            tokens=windows * self.length,
            data=self.data,
        )


def evaluate_windows(
    model: PreTrainedModel, windows: np.ndarray, data_name: str, batch: int = 16, progress_label: str = "evaluating"
) -> Evaluation:
    """Evaluate `model` on `windows`, (N, T + 1) integers of `data_name`; the other arguments are `window_losses`'s.

    Raises:
        DataError: as `window_losses`.
        ModelError: the loss of a window is not a finite number.
    """
    losses = window_losses(model, windows, batch, progress_label)
    if not np.isfinite(losses).all():
        first = int(np.flatnonzero(~np.isfinite(losses))[0])
        raise ModelError(f"the model's loss on window {first} is {losses[first]}: its weights or activations overflow")
    return Evaluation(losses, int(windows.shape[1]) - 1, data_name)


def window_losses(
    model: PreTrainedModel, windows: np.ndarray, batch: int = 16, progress_label: str = "evaluating"
) -> np.ndarray:
    """Return the mean next-token cross-entropy of each window.

    The model runs as it is (its device, its dtype) but in evaluation mode; the cross-entropy is computed from float32
    logits, a few positions at a time, and averaged in float64. The model's mode is restored.

    Args:
        model: a decoder with its language-model head.
        windows: (N, T + 1) integers; tokens 0 .. T-1 of a row are the input, 1 .. T the targets.
        batch: windows that are run together; less where their logits would not fit in `LOGITS_PER_BATCH`.
        progress_label: what the progress bar says.

    Returns:
        (N,) float64, nats per token.

    Raises:
        DataError: the windows have a wrong shape, are longer than the model's context, or hold ids it does not know.
    """
    decoder = open_decoder(model)
    check_windows(windows, decoder.context, decoder.vocabulary)
    if batch < 1:
        raise DataError(f"a batch of {batch} windows: expected at least 1")
    count, length = windows.shape[0], windows.shape[1] - 1
    rows = min(batch, count, max(1, LOGITS_PER_BATCH // (length * decoder.vocabulary)))
    losses = np.empty(count, dtype=np.float64)
    with evaluating(model), torch.inference_mode(), progress(progress_label, count) as advance:
        for start in range(0, count, rows):
            group = np.asarray(windows[start : start + rows], dtype=np.int64)
            filled = np.pad(group, ((0, rows - len(group)), (0, 0)), mode="edge")
            losses[start : start + rows] = group_losses(model, filled)[: len(group)]
            advance(len(group))
    return losses


def check_windows(windows: np.ndarray, context: int | None, vocabulary: int) -> None:
    """Refuse windows, (N, T + 1) integers, that a model with this context and so many ids cannot be evaluated on.

    Raises:
        DataError: no (N, T + 1) integers with N, T >= 1; T beyond the context; ids beyond the vocabulary.
    """
    if windows.ndim != 2 or windows.shape[0] < 1 or windows.shape[1] < 2 or windows.dtype.kind not in "iu":
        given = f"{windows.dtype} of shape {windows.shape}"
        raise DataError(f"token windows are {given}: expected integers of shape (N, T + 1), N and T at least 1")
    length = windows.shape[1] - 1
    if context is not None and length > context:
        raise DataError(f"windows of {length} input tokens: expected at most the model's context, {context}")
    for token in (int(windows.min()), int(windows.max())):
        if not 0 <= token < vocabulary:
            window = int(np.argwhere(windows == token)[0][0])
            raise DataError(f"token {token} in window {window}: expected 0 to {vocabulary - 1}, the model's vocabulary")


def group_losses(model: PreTrainedModel, group: np.ndarray) -> np.ndarray:
    """Return the mean cross-entropy of each window of one batch, (rows, T + 1) int64: (rows,) float64."""
    tokens = torch.from_numpy(group).to(model.device)
    logits = model(input_ids=tokens[:, :-1], use_cache=False).logits.flatten(0, 1)
    targets = tokens[:, 1:].flatten()
    chunk = max(1, LOGITS_PER_CHUNK // logits.shape[-1])
    parts = [
        torch.nn.functional.cross_entropy(some.float(), some_targets, reduction="none")
        for some, some_targets in zip(logits.split(chunk), targets.split(chunk), strict=True)
    ]
    return torch.cat(parts).cpu().double().view(len(group), -1).mean(dim=1).numpy()


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
