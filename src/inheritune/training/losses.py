"""What is minimised. B sequences, T input tokens, V vocabulary; `tokens` is (B, T + 1) int64, losses are in nats."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from inheritune.errors import ModelError

Loss = Callable[[nn.Module, torch.Tensor], torch.Tensor]
"""`loss(model, tokens)` gives a scalar: the mean over all predicted tokens."""


def next_token_loss(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy of tokens 1..T given the ones before, a float32 scalar; `tokens` is (B, T + 1)."""
    return _cross_entropy(model(input_ids=tokens[:, :-1], use_cache=False).logits, tokens[:, 1:])


def _cross_entropy(logits_BTV: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
    """Return the mean over all tokens, a float32 scalar, from logits (B, T, V) and targets (B, T)."""
    return F.cross_entropy(logits_BTV.float().flatten(0, 1), targets_BT.flatten())


class DistillationLoss:
    """Knowledge distillation as in the paper's baselines (App. D): `a * CE + (1 - a) * KL(teacher || student)`."""

    def __init__(self, teacher: nn.Module, alpha: float = 0.6, vocabulary: int | None = None) -> None:
        """Distil from `teacher`.

        Args:
            teacher: a causal language model; it is never trained.
            alpha: the weight a of the cross-entropy with the data; the paper uses 0.6.
            vocabulary: token ids both models share; logits of padding rows beyond it take no part in the KL.
        """
        self.teacher = teacher.eval().requires_grad_(False)
        self.alpha, self.vocabulary = alpha, vocabulary

    def __call__(self, model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
        """Return the mixed loss of one batch, a scalar; `tokens` is (B, T + 1) int64."""
        inputs = tokens[:, :-1]
        self.teacher.to(tokens.device)
        student_BTV = model(input_ids=inputs, use_cache=False).logits.float()
        with torch.no_grad():
            teacher_BTV = self.teacher(input_ids=inputs, use_cache=False).logits.float()
        width = self.vocabulary or student_BTV.shape[-1]
        if min(student_BTV.shape[-1], teacher_BTV.shape[-1]) < width:
            raise ModelError(
                f"the teacher has {teacher_BTV.shape[-1]} logits and the student {student_BTV.shape[-1]}: "
                f"expected at least the {width} of the vocabulary in both"
            )
        divergence = F.kl_div(
            F.log_softmax(student_BTV[..., :width], -1).flatten(0, 1),
            F.log_softmax(teacher_BTV[..., :width], -1).flatten(0, 1),
            reduction="batchmean",
            log_target=True,
        )
        return self.alpha * _cross_entropy(student_BTV, tokens[:, 1:]) + (1 - self.alpha) * divergence
