"""The attention probabilities of one layer from its queries and keys, as transformers' models compute them.

One formula covers every family that goes through transformers' attention interface:
softmax(softcap(scaling * Q K^T) + position bias + mask), with an extra sink logit per head where there is one.
The result is the matrix that mixes the values. (Granite-SWA reports its weights before the sinks take their share and
scales the mixed values instead; the matrix here has the sinks in it, as gpt-oss reports it.)
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from inheritune.errors import ModelError
from inheritune.spectra.measure.pieces import cached_size

EAGER_TOLERANCE = 1e-4
"""Largest difference, relative to the largest value, from the model's own attention function (float32 rounding)."""

ROWS = 16
"""Query positions that are compared with it."""


@dataclass(frozen=True)
class AttentionInputs:
    """What one layer's attention is computed from; n sequences of T tokens, H query heads, K key heads, S keys.

    Attributes:
        module: the attention module that asked.
        query: (n, H, T, d), positions already rotated in.
        key: (n, K, S, d) and value: (n, K, S, d'); query head h reads key head h // (H / K).
        mask: added to the logits, broadcast to (n, H, T, S): 0 where a query may look, the dtype's least value where
            it may not; None for no mask.
        scaling: factor of the dot products.
        softcap: logits are squashed to softcap * tanh(logit / softcap); None for no squashing.
        sinks: extra logits, (H,) or (n, H, T, 1), that take probability and give no value: the rows of the matrix then
            sum to less than 1.
        bias: position bias added to the logits, broadcast to (n, H, T, S).
    """

    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scaling: float
    softcap: float | None = None
    sinks: Tensor | None = None
    bias: Tensor | None = None

    @classmethod
    def from_call(
        cls, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: dict[str, Any]
    ) -> AttentionInputs:
        """Read the arguments with which a model calls its attention function; shapes as in the class."""
        scaling, sinks = options.get("scaling"), options.get("s_aux", options.get("sinks"))
        return cls(
            module=module,
            query=query,
            key=key,
            value=value,
            mask=mask,
            scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
            softcap=options.get("softcap"),
            sinks=getattr(module, "sinks", None) if sinks is None else sinks,
            bias=options.get("position_bias"),
        )

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in: float32, or float64 for gradients through a float64 model."""
        return torch.promote_types(self.query.dtype, torch.float32) if self.query.requires_grad else torch.float32

    def logits(self, sequences: slice, heads: slice) -> Tensor:
        """Return the logits of some sequences and heads before the mask, (n', h', T, S) in `dtype`."""
        key = self._of_query_heads(self.key, sequences, heads)
        logits = (self.query[sequences, heads].to(self.dtype) @ key.mT).mul_(self.scaling)
        if self.softcap is not None:
            logits = logits.div_(self.softcap).tanh_() * self.softcap  # a gradient needs the result of tanh
        if self.bias is not None:
            logits += part(self.bias, sequences, heads)
        return logits

    def hide(self, logits: Tensor, sequences: slice, heads: slice) -> Tensor:
        """Put the model's mask on `logits` (n', h', T, S) of some sequences and heads, in place, and return them."""
        if self.mask is None:
            return logits
        mask = part(self.mask, sequences, heads)[..., : logits.shape[-1]]
        return logits.add_(mask) if mask.dtype.is_signed else logits.masked_fill_(~mask, float("-inf"))

    def probabilities(self, logits: Tensor, sequences: slice, heads: slice) -> Tensor:
        """Return the softmax of `logits` over the keys, (n', h', T, S), sinks taking their share.

        It takes the place of the logits where there are no sinks and no gradients are wanted.
        """
        if self.sinks is not None:
            sinks = self.sinks[heads].view(1, -1, 1, 1) if self.sinks.dim() == 1 else part(self.sinks, sequences, heads)
            sinks = sinks.to(logits.dtype).expand(*logits.shape[:-1], 1)
            return torch.cat([logits, sinks], dim=-1).softmax(dim=-1)[..., :-1]
        if logits.requires_grad:
            return logits.softmax(dim=-1)
        rows = logits.view(-1, logits.shape[-1])
        for few in rows.split(cached_size(rows)):
            few.copy_(few.softmax(dim=-1))
        return logits

    def mix(self, probabilities: Tensor, sequences: slice, heads: slice) -> Tensor:
        """Return the values mixed by `probabilities`, (n', T, h', d') in their dtype."""
        return (probabilities @ self._of_query_heads(self.value, sequences, heads)).transpose(1, 2)

    def only_masks(self) -> bool:
        """Return whether the mask does nothing but hide keys: without a finite value other than 0."""
        if self.mask is None or not self.mask.dtype.is_signed:
            return True
        hidden = self.mask <= torch.finfo(self.mask.dtype).min / 2
        return bool((hidden | (self.mask == 0)).all())

    def _of_query_heads(self, tensor: Tensor, sequences: slice, heads: slice) -> Tensor:
        """Return the heads of keys or values (n, K, S, d) that the query heads read, (n', h', S, d) in `dtype`."""
        groups = self.query.shape[1] // tensor.shape[1]
        if groups == 1:
            return tensor[sequences, heads].to(self.dtype)
        start, stop, _ = heads.indices(self.query.shape[1])
        index = torch.arange(start, stop, device=tensor.device) // groups
        return tensor[sequences].index_select(1, index).to(self.dtype)


def part(tensor: Tensor, sequences: slice, heads: slice) -> Tensor:
    """Return some sequences and heads of a tensor that broadcasts to (n, H, T, S), with four dimensions."""
    while tensor.dim() < 4:
        tensor = tensor.unsqueeze(0)
    return tensor[sequences if tensor.shape[0] > 1 else slice(None), heads if tensor.shape[1] > 1 else slice(None)]


def check_against_eager(place: str, inputs: AttentionInputs, output: Tensor, options: dict[str, Any]) -> None:
    """Refuse a family whose own attention function gives something else than the formula above.

    The first sequence's last `ROWS` query positions of `output`, (n, T, H, d'), are compared with the
    `eager_attention_forward` of the source file that defines the attention module, called with the model's keyword
    arguments, `options`; a file without one is not checked. `place` is the first words of the message.

    Raises:
        ModelError: the outputs differ by more than `EAGER_TOLERANCE`.
    """
    if (eager := _own_eager(inputs.module)) is None:
        return
    first, last = slice(0, 1), slice(-ROWS, None)
    cut = {
        name: part(option, first, slice(None))[..., last, :] if name in ("position_bias", "sinks") else option
        for name, option in options.items()
        if name != "dropout" and option is not None
    }
    mask = None if inputs.mask is None else part(inputs.mask, first, slice(None))[..., last, : inputs.key.shape[2]]
    if mask is not None and not mask.dtype.is_signed:  # eager functions add their mask
        mask = torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, torch.finfo(torch.float32).min)
    with torch.no_grad():
        query, key, value = (tensor[first].float() for tensor in (inputs.query, inputs.key, inputs.value))
        expected, _ = eager(inputs.module, query[..., last, :], key, value, mask, **cut)
        error = (expected.float() - output[first, last].float()).abs().max()
        difference = float(error / value.abs().max().clamp(min=1e-12))
    if not difference <= EAGER_TOLERANCE:
        raise ModelError(
            f"{place} computes attention in a way of its own "
            f"(its output differs from softmax attention by {difference:.1e} of the largest value)"
        )


def _own_eager(module: nn.Module) -> Callable[..., Any] | None:
    """Return `eager_attention_forward` of the source file that defines the module's class."""
    return getattr(sys.modules.get(type(module).__module__), "eager_attention_forward", None)
