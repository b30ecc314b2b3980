"""The attention function that models call while they are watched, through transformers' AttentionInterface."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from inheritune.errors import ModelError
from inheritune.spectra.attention import AttentionInputs, eager_difference
from inheritune.spectra.probe import PIECE_BYTES, Probe

if TYPE_CHECKING:
    from torch import Tensor, nn

IMPLEMENTATION = "inheritune_probe"
"""The name under which the function is registered."""

EAGER_TOLERANCE = 1e-4
"""Largest difference, relative to the largest value, from the model's own attention function (float32 rounding)."""

_active: ContextVar[Probe] = ContextVar("inheritune_active_probe")


@contextmanager
def active(probe: Probe) -> Iterator[None]:
    """Register the attention function and send what it sees to `probe`."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    AttentionInterface.register(IMPLEMENTATION, attend)
    AttentionMaskInterface.register(IMPLEMENTATION, eager_mask)
    token = _active.set(probe)
    try:
        yield
    finally:
        _active.reset(token)


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Compute one layer's attention for the model and hand the probabilities to the active probe.

    The model calls this in place of its own function; see `AttentionInputs` for the arguments.

    Returns:
        (n, T, H, d') in the dtype of `value`, and no weights.

    Raises:
        ModelError: the family computes attention in a way that this function does not reproduce.
    """
    import torch

    probe = _active.get()
    inputs = AttentionInputs.from_call(module, query, key, value, attention_mask, options)
    n, heads, rows, _ = query.shape
    if probe.layer is not None:
        _check_unmasked_is_defined(probe, inputs)
    output = torch.empty(n, rows, heads, value.shape[-1], dtype=torch.float32, device=query.device)
    for cut in _pieces(n, heads, rows * key.shape[2]):
        output[cut[0], :, cut[1]] = _attend_piece(probe, inputs, *cut)
    if probe.layer is not None:
        _check_against_eager(probe, inputs, output, options)
        probe.pass_heads(heads)
    return output.to(value.dtype), None


def _attend_piece(probe: Probe, inputs: AttentionInputs, sequences: slice, heads: slice) -> Tensor:
    """Emit the probabilities of some sequences and heads and return the mixed values."""
    logits = inputs.logits(sequences, heads)
    if "full" in probe.masks:
        probe.emit("full", sequences.start, heads.start, inputs.probabilities(logits, sequences, heads))
    causal = inputs.probabilities(inputs.masked(logits, sequences, heads), sequences, heads)
    del logits
    probe.emit("causal", sequences.start, heads.start, causal)
    return inputs.mix(causal, sequences, heads)


def _pieces(sequences: int, heads: int, entries: int) -> Iterator[tuple[slice, slice]]:
    """Cut sequences x heads matrices of `entries` entries into pieces of at most PIECE_BYTES, whole heads first."""
    matrices = max(1, PIECE_BYTES // (3 * 4 * entries))  # logits, masked logits and their softmax, float32
    head_step = min(heads, matrices)
    sequence_step = max(1, matrices // heads)
    for sequence in range(0, sequences, sequence_step):
        for head in range(0, heads, head_step):
            yield slice(sequence, min(sequence + sequence_step, sequences)), slice(head, min(head + head_step, heads))


def _check_unmasked_is_defined(probe: Probe, inputs: AttentionInputs) -> None:
    """Refuse `full` for a family that folds finite biases into its mask: without the mask they are lost."""
    if probe.first_chunk and "full" in probe.masks and not inputs.only_masks():
        raise ModelError(
            f"{probe.family} adds a bias to its logits through the attention mask, so the softmax without the mask "
            'cannot be told: use mask="causal" (--mask causal)'
        )


def _check_against_eager(probe: Probe, inputs: AttentionInputs, output: Tensor, options: dict[str, Any]) -> None:
    """Refuse a family whose own attention function gives something else."""
    if not probe.first_chunk:
        return
    difference = eager_difference(inputs, output, options)
    if difference is not None and not difference <= EAGER_TOLERANCE:
        raise ModelError(
            f"cannot analyse {probe.family}: layer {probe.layer} computes attention in a way of its own "
            f"(its output differs from softmax attention by {difference:.1e} of the largest value)"
        )
