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
from typing import TYPE_CHECKING, Any

from inheritune.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

EAGER_TOLERANCE = 1e-4
"""Largest difference, relative to the largest value, from the model's own attention function (float32 rounding)."""


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

    def logits(self, sequences: slice, heads: slice) -> Tensor:
        """Return the logits of some sequences and heads before the mask, (n', h', T, S) float32."""
        key = self._of_query_heads(self.key, sequences, heads)
        logits = (self.query[sequences, heads].float() @ key.mT).mul_(self.scaling)
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        if self.bias is not None:
            logits += part(self.bias, sequences, heads).float()
        return logits

    def masked(self, logits: Tensor, sequences: slice, heads: slice) -> Tensor:
        """Return `logits` (n', h', T, S) with the model's mask, as a new tensor."""
        if self.mask is None:
            return logits
        mask = part(self.mask, sequences, heads)[..., : logits.shape[-1]]
        return logits.masked_fill(~mask, float("-inf")) if mask.dtype.is_signed is False else logits + mask.float()

    def probabilities(self, logits: Tensor, sequences: slice, heads: slice) -> Tensor:
        """Return the softmax of `logits` over the keys, (n', h', T, S) float32, sinks taking their share."""
        import torch

        if self.sinks is None:
            return logits.softmax(dim=-1)
        sinks = self.sinks.float()
        sinks = sinks[heads].view(1, -1, 1, 1) if sinks.dim() == 1 else part(sinks, sequences, heads)
        sinks = sinks.expand(*logits.shape[:-1], 1)
        return torch.cat([logits, sinks], dim=-1).softmax(dim=-1)[..., :-1]

    def mix(self, probabilities: Tensor, sequences: slice, heads: slice) -> Tensor:
        """Return the values mixed by `probabilities`, (n', T, h', d') float32."""
        return (probabilities @ self._of_query_heads(self.value, sequences, heads)).transpose(1, 2)

    def only_masks(self) -> bool:
        """Return whether the mask does nothing but hide keys: without a finite value other than 0."""
        if self.mask is None or self.mask.dtype.is_signed is False:
            return True
        import torch

        hidden = self.mask <= torch.finfo(self.mask.dtype).min / 2
        return bool((hidden | (self.mask == 0)).all())

    def _of_query_heads(self, tensor: Tensor, sequences: slice, heads: slice) -> Tensor:
        """Return the heads of keys or values (n, K, S, d) that the query heads read, (n', h', S, d) float32."""
        import torch

        groups = self.query.shape[1] // tensor.shape[1]
        if groups == 1:
            return tensor[sequences, heads].float()
        start, stop, _ = heads.indices(self.query.shape[1])
        index = torch.arange(start, stop, device=tensor.device) // groups
        return tensor[sequences].index_select(1, index).float()


def part(tensor: Tensor, sequences: slice, heads: slice) -> Tensor:
    """Return some sequences and heads of a tensor that broadcasts to (n, H, T, S), with four dimensions."""
    while tensor.dim() < 4:
        tensor = tensor.unsqueeze(0)
    return tensor[sequences if tensor.shape[0] > 1 else slice(None), heads if tensor.shape[1] > 1 else slice(None)]


def check_against_eager(place: str, inputs: AttentionInputs, output: Tensor, options: dict[str, Any]) -> None:
    """Refuse a family whose own attention function gives something else than the formula above.

    Args:
        place: what cannot be done where, the first words of the message.
        inputs: the layer's inputs.
        output: (n, T, H, d') float32, what the formula gives.
        options: the model's keyword arguments to its attention function.

    Raises:
        ModelError: the outputs differ by more than `EAGER_TOLERANCE`.
    """
    difference = _eager_difference(inputs, output, options)
    if difference is not None and not difference <= EAGER_TOLERANCE:
        raise ModelError(
            f"{place} computes attention in a way of its own "
            f"(its output differs from softmax attention by {difference:.1e} of the largest value)"
        )


def _eager_difference(inputs: AttentionInputs, output: Tensor, options: dict[str, Any], rows: int = 16) -> float | None:
    """Compare the first sequence's last `rows` query positions with the model's own attention function.

    That is the one in the source file that defines the attention module; `output` is (n, T, H, d') float32.

    Returns:
        The largest difference relative to the largest value, or None where the source file has no such function.
    """
    import torch

    eager = _own_eager(inputs.module)
    if eager is None:
        return None
    first, last = slice(0, 1), slice(-rows, None)
    cut = {
        name: part(option, first, slice(None))[..., last, :] if name in ("position_bias", "sinks") else option
        for name, option in options.items()
        if name != "dropout" and option is not None
    }
    mask = None if inputs.mask is None else part(inputs.mask, first, slice(None))[..., last, : inputs.key.shape[2]]
    if mask is not None and mask.dtype.is_signed is False:  # eager functions add their mask
        mask = torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, torch.finfo(torch.float32).min)
    query, key, value = (tensor[first].float() for tensor in (inputs.query, inputs.key, inputs.value))
    expected, _ = eager(inputs.module, query[..., last, :], key, value, mask, **cut)
    difference = (expected.float() - output[first, last]).abs().max()
    return float(difference / value.abs().max().clamp(min=1e-12))


def _own_eager(module: nn.Module) -> Callable[..., Any] | None:
    """Return `eager_attention_forward` of the source file that defines the module's class."""
    home = sys.modules.get(type(module).__module__)
    return getattr(home, "eager_attention_forward", None)
