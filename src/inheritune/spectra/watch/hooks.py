"""Attention probabilities by forward hooks, for families that do not go through transformers' AttentionInterface.

Falcon, BLOOM, MPT, GPT-J, GPT-Neo, CodeGen, XGLM and a few others compute their logits inside their attention modules
and keep them to themselves. When such a module has run, it is run once more on the same inputs up to its softmax (or
its call of PyTorch's fused attention), whose logits are noted; the products are carried out in float32, also in a model
of half precision. For the softmax without the mask the module's mask is opened first: its mask argument, and a mask
that it keeps in a buffer. That nothing else was changed is checked: every key that a query can see has the same logit.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from inheritune.errors import ModelError
from inheritune.records.analysis import Mask
from inheritune.spectra.measure.pieces import map_in_threads, plan_work
from inheritune.spectra.watch.attention import AttentionInputs
from inheritune.spectra.watch.interface import Probe, attention_implementation

HIDDEN = 1000.0
"""A logit so far below the best of its row is hidden by a mask (masks are -1e4 or the dtype's least value)."""

TOLERANCE = 1e-4
"""Largest difference of logits that should be equal, relative to the largest logit (float32 rounding)."""

PRODUCTS = {"matmul", "__matmul__", "bmm", "baddbmm"}


@contextmanager
def watched_modules(probe: Probe) -> Iterator[None]:
    """Send the probabilities of the blocks' attention modules to `probe`; the hooks are removed at the end."""
    name = probe.decoder.config._attn_implementation
    plain = name if name in ("eager", "sdpa") else "eager"  # no other says how it comes by its probabilities
    with ExitStack() as stack:
        stack.enter_context(attention_implementation(probe.decoder.model, plain))
        for block in probe.decoder.blocks:
            for module in block.modules():
                if "attention" in type(module).__name__.lower():
                    stack.enter_context(module.register_forward_hook(partial(_take, probe), with_kwargs=True))
        yield


def _take(probe: Probe, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    """Emit what a module's softmax gives; a wrapper around a module that has been heard is passed over."""
    if probe.layer is None or probe.head > 0:
        return
    inputs = inspect.signature(module.forward).bind(*args, **kwargs)
    masked = _logits(module, inputs)
    if masked is None:
        return
    causal = masked.softmax(dim=-1)
    _check_returned(probe, causal, output)
    if "full" in probe.masks:
        _emit(probe, "full", _unmasked(probe, module, inputs, masked).softmax(dim=-1))
    _emit(probe, "causal", causal)
    probe.pass_heads(causal.shape[1])


def _unmasked(probe: Probe, module: nn.Module, inputs: inspect.BoundArguments, masked: Tensor) -> Tensor:
    """Return the logits of `module` without its mask, (n, H, T, T) as `masked`, those with it."""
    named = inputs.arguments | inputs.arguments.get("kwargs", {})
    if any(isinstance(value, Tensor) and ("alibi" in name or "bias" in name) for name, value in named.items()):
        raise ModelError(
            f"{probe.family} adds a bias to its logits that grows with the key's position (ALiBi): without the mask "
            'every token would look at the last one, so only the causal softmax can be analysed: use mask="causal" '
            "(--mask causal)"
        )
    with _open_masks(module, inputs, masked.shape[-1]):
        logits = _logits(module, inputs)
    if logits is None or (probe.checks and not _differs_by_mask(logits, masked)):
        raise ModelError(
            f"{probe.family} hides later tokens inside its attention modules in a way that cannot be undone, so only "
            'the causal softmax can be analysed: use mask="causal" (--mask causal)'
        )
    return logits


def _emit(probe: Probe, mask: Mask, probabilities: Tensor) -> None:
    """Hand out the (n, H, T, T) probabilities of a module in pieces that fit the probe's memory."""
    plan = plan_work(probabilities.shape[-1], probe.memory, probabilities.device)
    pieces = plan.cut(*probabilities.shape[:2])
    map_in_threads(lambda cut: probe.emit(mask, cut[0].start, cut[1].start, probabilities[cut]), pieces, plan.workers)


class _LogitsError(Exception):
    """Ends a module's forward pass at its logits, (n, H, T, T) or (n H, T, T) float32."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits


def _logits(module: nn.Module, inputs: inspect.BoundArguments) -> Tensor | None:
    """Run `module` up to its softmax and return its logits, (n, H, T, T) float32, or None where it takes none."""
    try:
        with _Listener(module):
            module.forward(*inputs.args, **inputs.kwargs)
    except _LogitsError as reached:
        arguments = (*inputs.args, *inputs.kwargs.values())
        hidden = next(each for each in arguments if isinstance(each, Tensor) and each.ndim == 3)
        return reached.logits.view(hidden.shape[0], -1, *reached.logits.shape[-2:])
    return None


class _Listener(TorchFunctionMode):
    """Raises `_LogitsError` at the first softmax over square matrices that `module` takes."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name == "scaled_dot_product_attention":
            raise _LogitsError(_fused_logits(self.module, *args, **kwargs))
        if name == "softmax" and args[0].ndim in (3, 4) and args[0].shape[-1] == args[0].shape[-2]:
            raise _LogitsError(args[0].float())
        # In float32, unless one of the factors is a matrix of weights: queries and keys stay the model's.
        if name in PRODUCTS and all(item.ndim >= 3 for item in (*args, *kwargs.values()) if isinstance(item, Tensor)):
            args = tuple(item.float() if isinstance(item, Tensor) else item for item in args)
            kwargs = {key: item.float() if isinstance(item, Tensor) else item for key, item in kwargs.items()}
        return func(*args, **kwargs)


def _fused_logits(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return the logits (n, H, T, T) of PyTorch's `scaled_dot_product_attention`, whose arguments these are."""
    if is_causal:
        attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    inputs = AttentionInputs(module, query, key, value, attn_mask, query.shape[-1] ** -0.5 if scale is None else scale)
    return inputs.hide(inputs.logits(slice(None), slice(None)), slice(None), slice(None))


@contextmanager
def _open_masks(module: nn.Module, inputs: inspect.BoundArguments, length: int) -> Iterator[None]:
    """Let the masks among the module's inputs hide nothing from now on, and its own mask nothing meanwhile."""
    for arguments in (inputs.arguments, inputs.arguments.get("kwargs", {})):
        for name, mask in arguments.items():
            if "mask" in name and isinstance(mask, Tensor):
                # Nothing is hidden by 0, or, of truth values, by the one that the last key has not for the first query.
                arguments[name] = (
                    mask.logical_not()[..., :1, -1:].expand_as(mask)
                    if mask.dtype == torch.bool
                    else torch.zeros_like(mask)
                )
    masks = {name: buffer for name, buffer in module.named_buffers(recurse=False) if _is_triangle(buffer, length)}
    try:
        for name, buffer in masks.items():
            setattr(module, name, buffer.new_ones(()).expand_as(buffer))
        yield
    finally:
        for name, buffer in masks.items():
            setattr(module, name, buffer)


def _is_triangle(buffer: Tensor, length: int) -> bool:
    """Return whether a buffer (..., S, S), S >= `length`, marks with 1 what each token sees: itself and none later."""
    if buffer.ndim < 2 or buffer.shape[-1] != buffer.shape[-2] or buffer.shape[-1] < length:
        return False
    corner = buffer[..., :length, :length]
    ones = corner == 1
    return bool((ones | (corner == 0)).all() and not ones.triu(1).any() and ones.diagonal(dim1=-2, dim2=-1).all())


def _check_returned(probe: Probe, causal: Tensor, output: Any) -> None:
    """Refuse a module that returns other weights than its softmax, `causal` (n, H, T, T), rounded to its dtype."""
    if not probe.checks or not isinstance(output, tuple | list):
        return
    for weights in output[1:]:
        if isinstance(weights, torch.Tensor) and weights.shape == causal.shape:
            allowed = TOLERANCE if weights.dtype == torch.float32 else 0.05
            difference = float((weights.float() - causal).abs().max())
            if difference > allowed:
                raise ModelError(
                    f"{probe.cannot}: layer {probe.layer} computes attention in a way of its own "
                    f"(the weights it returns differ from its softmax by {difference:.1e})"
                )


def _differs_by_mask(logits: Tensor, masked: Tensor) -> bool:
    """Return whether nothing hides in `logits`, and what `masked` leaves visible is the same; both (n, H, T, T)."""
    visible = masked > masked.amax(dim=-1, keepdim=True) - HIDDEN
    change = (logits - masked).abs()[visible].max()
    hidden = (logits < logits.amax(dim=-1, keepdim=True) - HIDDEN).any()
    return bool(change <= TOLERANCE * masked[visible].abs().max().clamp(min=1.0)) and not hidden
