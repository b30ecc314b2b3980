"""What is minimised. B sequences, T input tokens, N = B x T, V vocabulary, D hidden units; losses are in nats.

Logits are the largest arrays of a training step. So the loss is worked out for a few rows (tokens) at a time, each
with its gradients, and neither the student's nor the teacher's logits ever exist as a whole. A batch of no more rows
than `rows_at_once` is one piece, computed the plain way.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from inheritune.decoder import open_decoder
from inheritune.decoder.head import head_of, outputs_of
from inheritune.errors import ModelError
from inheritune.training.settings import OBJECTIVES, ObjectiveSettings

Loss = Callable[[nn.Module, torch.Tensor], torch.Tensor]
"""`loss(model, tokens)` gives a scalar: the mean over all predicted tokens."""


def rows_at_once(vocabulary: int, on_cpu: bool) -> int:
    """Return how many rows of logits exist at a time: 64 MB in float32, or what stays in a processor's cache.

    For 2,048 rows of 2,048 the latter takes a fifth of the memory and no more time (docs/results/objective.md). With a
    vocabulary so large that few rows fit there, the pieces are larger: each adds to the gradients of the whole head.
    """
    return 128 if on_cpu and vocabulary <= 8192 else max((1 << 24) // vocabulary, 1)


class Objective:
    """Cross-entropy, KL(teacher || student) and the distance of hidden states, mixed as `ObjectiveSettings` says.

    A family whose head cannot be run alone (`head_of`) gives its own logits whole, in its own dtype.
    """

    def __init__(
        self, settings: ObjectiveSettings, teacher: PreTrainedModel | None = None, vocabulary: int | None = None
    ) -> None:
        """Mix what the settings ask for.

        Args:
            settings: the weights and the temperature.
            teacher: a causal language model in evaluation mode, which is never trained; None where it needs none.
            vocabulary: token ids both models share; logits of padding rows beyond it take no part in the KL.
        """
        self.settings, self.vocabulary = settings, vocabulary
        self.teacher = teacher if settings.needs_teacher else None

    def __call__(self, model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
        """Return the loss of one batch, a float32 scalar; `tokens` is (B, T + 1) int64.

        Raises:
            ModelError: a model has fewer logits than the vocabulary.
            RecipeError: pairs of blocks that the models do not have.
        """
        inputs, targets = tokens[:, :-1], tokens[:, 1:].flatten()
        models = [_unwrapped(model)] + ([self.teacher] if self.teacher is not None else [])
        vocabulary = max(each.config.get_text_config(decoder=True).vocab_size for each in models)
        size = rows_at_once(vocabulary, tokens.device.type == "cpu")
        pairs = []
        if self.settings.hidden:
            pairs = self.settings.pairs(*(open_decoder(each).layers for each in models))
        student = _read(model, inputs, [ours for ours, _ in pairs], whole=size >= len(targets))
        teacher = None
        if self.teacher is not None:
            if self.teacher.device != tokens.device:
                self.teacher.to(tokens.device)
            with torch.no_grad():
                teacher = _read(self.teacher, inputs, [theirs for _, theirs in pairs], whole=size >= len(targets))

        def of_some(place: slice, rows: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                taught = teacher.head(teacher.rows[place]) if teacher is not None and self.settings.kl else None
            return self._of_logits(student.head(rows), taught, targets[place])

        if size >= len(targets):
            loss = of_some(slice(None), student.rows)
        else:
            loss = _InPieces.apply(of_some, size, student.rows, *student.weights)
        if teacher is not None and pairs:
            distances = [_distance(*pair) for pair in zip(student.blocks, teacher.blocks, strict=True)]
            loss = loss + self.settings.hidden * torch.stack(distances).mean()
        return loss

    def _of_logits(self, student: torch.Tensor, teacher: torch.Tensor | None, targets: torch.Tensor) -> torch.Tensor:
        """Return the mean over n tokens, from logits (n, V) of each model and targets (n,)."""
        said, student = self.settings, student.float()
        loss = student.new_zeros(())
        if said.cross_entropy:
            loss = loss + said.cross_entropy * F.cross_entropy(student, targets)
        if teacher is not None:
            width = self.vocabulary or student.shape[-1]
            if min(student.shape[-1], teacher.shape[-1]) < width:
                raise ModelError(
                    f"the teacher has {teacher.shape[-1]} logits and the student {student.shape[-1]}: "
                    f"expected at least the {width} of the vocabulary in both"
                )
            ours, theirs = (_log_softmax(each[:, :width].float(), said.temperature) for each in (student, teacher))
            divergence = F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
            loss = loss + said.kl * said.temperature**2 * divergence
        return loss


next_token_loss = Objective(OBJECTIVES["cross-entropy"])
"""The mean cross-entropy of tokens 1..T given the ones before."""


def _log_softmax(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    return F.log_softmax(logits if temperature == 1 else logits / temperature, -1)


def _distance(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return the mean over tokens of |s - t|^2 / |t|^2 of hidden states (B, T, D), in float32.

    Each token is measured by its own length: some are a thousand times as long as others, and would be all that counts.
    """
    student, teacher = student.float(), teacher.float()
    squares = teacher.square().sum(-1).clamp_min(torch.finfo(torch.float32).tiny)
    return ((student - teacher).square().sum(-1) / squares).mean()


@dataclass(frozen=True)
class _Reading:
    """What a model makes of a batch.

    Attributes:
        rows: what `head` turns into logits, (N, D); the logits themselves, (N, V), where the head is none.
        head: gives the logits (n, V) of some rows.
        weights: those that `head` uses.
        blocks: outputs of the blocks that were asked for, each (B, T, D).
    """

    rows: torch.Tensor
    head: Callable[[torch.Tensor], torch.Tensor]
    weights: tuple[nn.Parameter, ...]
    blocks: list[torch.Tensor]


def _read(model: nn.Module, inputs: torch.Tensor, layers: Sequence[int], whole: bool) -> _Reading:
    """Run a model, which may be wrapped for several processes, on inputs (B, T); `whole` takes its own logits."""
    module = _unwrapped(model)
    head = None if whole else head_of(module)
    blocks = [open_decoder(module).blocks[layer] for layer in layers]
    with outputs_of(blocks) as seen:
        if head is None:
            rows = model(input_ids=inputs, use_cache=False).logits.flatten(0, 1)
        else:
            rows = head.hidden(model, inputs).flatten(0, 1)
    outputs = [seen[block] for block in blocks]
    hidden = [each if isinstance(each, torch.Tensor) else each[0] for each in outputs]
    return _Reading(rows, head or (lambda rows: rows), head.weights() if head else (), hidden)


def _unwrapped(model: nn.Module) -> PreTrainedModel:
    """Return the model itself; what accelerate has put around its forward pass (autocast) stays."""
    module: PreTrainedModel = extract_model_from_parallel(model, keep_torch_compile=False)
    return module


class _InPieces(torch.autograd.Function):
    """The mean over N rows of a loss that is worked out for `size` rows at a time, together with its gradients.

    So no piece's logits outlive it and none is computed twice. What stays until the backward pass are the gradients of
    the rows (N, D) and of the head's weights (V, D).
    """

    @staticmethod
    def forward(
        ctx: Any,
        of_some: Callable[[slice, torch.Tensor], torch.Tensor],
        size: int,
        rows: torch.Tensor,
        *weights: torch.Tensor,
    ) -> torch.Tensor:
        """Return the loss, and keep the gradients."""
        total = rows.new_zeros((), dtype=torch.float32)
        of_rows, of_weights = torch.empty_like(rows), [None] * len(weights)
        for start in range(0, len(rows), size):
            place = slice(start, start + size)
            some = rows[place].detach().requires_grad_()
            with torch.enable_grad():
                loss = of_some(place, some) * (len(some) / len(rows))
            of_rows[place], *parts = torch.autograd.grad(loss, (some, *weights), allow_unused=True)
            of_weights = [_added(*pair) for pair in zip(of_weights, parts, strict=True)]
            total += loss.detach()
        ctx.gradients = (of_rows, *of_weights)
        return total

    @staticmethod
    def backward(ctx: Any, factor: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients times that of the loss."""
        return (None, None, *(None if each is None else factor * each for each in ctx.gradients))


def _added(total: torch.Tensor | None, part: torch.Tensor | None) -> torch.Tensor | None:
    return total if part is None else part if total is None else total.add_(part)
