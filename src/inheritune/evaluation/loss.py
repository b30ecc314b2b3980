"""The loss of a model on fixed windows of tokens.

Every model is asked about the same windows, and a window's loss is one number, so that two models can be compared
window by window (see `paired`). The official code averages randomly drawn batches instead, whose own noise over the
last evaluations of one run is larger than many gaps in the paper's tables.

What repeats (measured on a CPU, and held by the tests): the same call gives the same bits. Another `batch` gives
matrix products of another shape, whose kernels may add in another order: a window's loss moved by at most 3e-7 nats
(four models, batches of 1 to 37), 1/30,000 of the margin of the comparison. The last group of windows is filled up to
the size of the others, so that for one `batch`, and at least that many windows, a window's loss depends neither on the
windows beside it nor on its place among them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from inheritune.decoder import evaluating, open_decoder
from inheritune.errors import DataError, ModelError
from inheritune.evaluation.paired import count_groups, mean_error
from inheritune.progress import progress
from inheritune.records.evaluation import LossSummary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOGITS_PER_BATCH = 1 << 27
"""At most so many logits exist at a time (512 MB in float32); a batch that would make more is run in smaller ones."""
LOGITS_PER_CHUNK = 1 << 22
"""At most so many logits are copied to float32 for the cross-entropy at a time (16 MB, and as much for its result)."""


@dataclass(frozen=True)
class Evaluation:
    """The loss of one model on fixed windows.

    Attributes:
        losses: mean next-token cross-entropy of each window, nats per token, (N,) float64.
        length: T, the number of predicted tokens of each window.
        data: what the windows are made of.
        documents: the first and the last document of each window, (N, 2) int64; None where they are not known.
    """

    losses: np.ndarray = field(repr=False)
    length: int
    data: str
    documents: np.ndarray | None = field(default=None, repr=False)

    @property
    def summary(self) -> LossSummary:
        """The numbers for a record; all windows have the same length, so their mean is the mean over tokens."""
        loss, windows = float(self.losses.mean()), len(self.losses)
        error = mean_error(self.losses, self.documents)[0]
        return LossSummary(
            loss=loss,
            standard_error=error if math.isfinite(error) else None,
            perplexity=math.exp(loss) if loss < 700 else None,
            windows=windows,
            clusters=count_groups(self.documents),
            length=self.length,
            tokens=windows * self.length,
            data=self.data,
        )


def evaluate_windows(
    model: PreTrainedModel,
    windows: np.ndarray,
    data_name: str,
    batch: int = 16,
    progress_label: str = "evaluating",
    documents: np.ndarray | None = None,
) -> Evaluation:
    """Evaluate `model` on `windows`, (N, T + 1) integers of `data_name`, of `documents` as of `paired.compare`.

    The other arguments are `window_losses`'s.

    Raises:
        DataError: as `window_losses`.
        ModelError: the loss of a window is not a finite number.
    """
    losses = window_losses(model, windows, batch, progress_label)
    if not np.isfinite(losses).all():
        first = int(np.flatnonzero(~np.isfinite(losses))[0])
        raise ModelError(f"the model's loss on window {first} is {losses[first]}: its weights or activations overflow")
    return Evaluation(losses, int(windows.shape[1]) - 1, data_name, documents)


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
