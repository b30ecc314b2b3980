"""Attention weights by forward hooks, for families that do not go through transformers' AttentionInterface.

Falcon, BLOOM, MPT, GPT-J, GPT-Neo, CodeGen and XGLM compute the weights inside their attention modules and return
them beside the output. Only the causal weights can be seen there: the logits behind the mask are never kept.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from inheritune.errors import ModelError
from inheritune.spectra.probe import Probe

if TYPE_CHECKING:
    from torch import Tensor, nn


@contextmanager
def watched_modules(probe: Probe) -> Iterator[None]:
    """Send the weights that the blocks' attention modules return to `probe`; the hooks are removed at the end."""
    with ExitStack() as stack:
        for block in probe.decoder.blocks:
            for module in block.modules():
                if "attention" in type(module).__name__.lower():
                    _watch(probe, module, stack)
        yield


def check_masks(probe: Probe) -> None:
    """Refuse the unmasked softmax.

    Raises:
        ModelError: `full` is wanted.
    """
    if "full" in probe.masks:
        raise ModelError(
            f"{probe.family} does not use transformers' attention interface, so its logits behind the mask cannot be "
            'seen and only the causal softmax can be analysed: use mask="causal" (--mask causal)'
        )


def _watch(probe: Probe, module: nn.Module, stack: ExitStack) -> None:
    if "output_attentions" in inspect.signature(module.forward).parameters:
        stack.enter_context(module.register_forward_pre_hook(_ask_for_weights, with_kwargs=True))
    stack.enter_context(module.register_forward_hook(partial(_take_weights, probe)))


def _ask_for_weights(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, kwargs | {"output_attentions": True}


def _take_weights(probe: Probe, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    """Emit the 4-dimensional tensor beside the module's output; a wrapper that returns it again is passed over."""
    if probe.layer is None or probe.head > 0 or not isinstance(output, tuple | list):
        return
    weights: list[Tensor] = [item for item in output[1:] if getattr(item, "ndim", 0) == 4]
    if weights:
        probe.emit("causal", 0, 0, weights[0].float())
        probe.pass_heads(weights[0].shape[1])
