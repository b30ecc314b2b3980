"""The attention function that models call while they are watched, through transformers' AttentionInterface."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from inheritune.errors import ModelError
from inheritune.spectra.measure.pieces import cached_rows, map_in_threads, plan_work
from inheritune.spectra.watch.attention import AttentionInputs, check_against_eager, part
from inheritune.spectra.watch.probe import Probe

if TYPE_CHECKING:
    from torch import Tensor, nn

IMPLEMENTATION = "inheritune_probe"
"""The name under which the function is registered."""

_active: ContextVar[Probe] = ContextVar("inheritune_active_probe")


@contextmanager
def active(probe: Probe) -> Iterator[None]:
    """Register the attention function and send what it sees to `probe`."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(IMPLEMENTATION, attend)
    AttentionMaskInterface.register(IMPLEMENTATION, _mask)
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
    first = probe.is_new(module, query)

    def attend_piece(cut: tuple[slice, slice]) -> None:
        output[cut[0], :, cut[1]] = _attend_piece(probe, inputs, *cut, first)

    plan = plan_work(max(rows, key.shape[2]), probe.memory, query.device)
    share = -(-n * heads // plan.workers)
    map_in_threads(attend_piece, _pieces(n, heads, min(plan.matrices, share)), plan.workers)
    if probe.layer is not None:
        if probe.first_chunk:
            check_against_eager(f"cannot analyse {probe.family}: layer {probe.layer}", inputs, output, options)
        if first:
            probe.pass_heads(heads)
    return output.to(value.dtype), None


def _mask(batch_size: int, *args: Any, attention_mask: Tensor | None = None, **options: Any) -> Tensor | None:
    """Return the mask that the active probe's model gets under its usual implementation, (n, 1, T, S), or None.

    Without padding all sequences have the same mask: it is made once and expanded. A model that can run under SDPA is
    made for masks of truth values, a quarter of the size of eager attention's masks of numbers; any other gets those.
    """
    from transformers.masking_utils import eager_mask, sdpa_mask

    alone = attention_mask is None
    make = sdpa_mask if getattr(_active.get().decoder.model, "_supports_sdpa", False) else eager_mask
    options |= {"attention_mask": attention_mask, "allow_is_causal_skip": False}
    mask: Tensor | None = make(1 if alone else batch_size, *args, **options)
    return mask.expand(batch_size, *mask.shape[1:]) if alone and mask is not None else mask


def _attend_piece(probe: Probe, inputs: AttentionInputs, sequences: slice, heads: slice, emit: bool) -> Tensor:
    """Emit, if `emit`, the probabilities of some sequences and heads; return the mixed values, (n', T, h', d')."""
    logits = inputs.logits(sequences, heads)
    if emit and "full" in probe.masks:
        # Large matrices come one by one and fill the memory: there the logits are made again instead of copied.
        alone = logits.shape[:2] == (1, 1)
        full = _softmax(inputs, logits if alone else logits.clone(), sequences, heads)
        probe.emit("full", sequences.start, heads.start, full)
        del full
        logits = inputs.logits(sequences, heads) if alone else logits
    causal = _softmax(inputs, _hide(inputs, logits, sequences, heads), sequences, heads)
    mixed = inputs.mix(causal, sequences, heads)
    if emit:
        probe.emit("causal", sequences.start, heads.start, causal)
    return mixed


def _hide(inputs: AttentionInputs, logits: Tensor, sequences: slice, heads: slice) -> Tensor:
    """Put the model's mask on the logits (n', h', T, S) of some sequences and heads, in place, and return them."""
    if inputs.mask is None:
        return logits
    mask = part(inputs.mask, sequences, heads)[..., : logits.shape[-1]]
    return logits.add_(mask) if mask.dtype.is_signed else logits.masked_fill_(~mask, float("-inf"))


def _softmax(inputs: AttentionInputs, logits: Tensor, sequences: slice, heads: slice) -> Tensor:
    """Return the probabilities of the logits (n', h', T, S) of some sequences and heads, where possible in place."""
    if inputs.sinks is not None:
        return inputs.probabilities(logits, sequences, heads)
    rows = logits.view(-1, logits.shape[-1])
    for part_of_rows in rows.split(cached_rows(rows)):
        part_of_rows.copy_(part_of_rows.softmax(dim=-1))
    return logits


def _pieces(sequences: int, heads: int, matrices: int) -> Iterator[tuple[slice, slice]]:
    """Cut sequences x heads into pieces of at most so many matrices, whole heads first."""
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
