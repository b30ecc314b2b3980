"""The attention function that models call while they are watched, through transformers' AttentionInterface."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from inheritune.spectra.watch.attention import AttentionInputs, check_against_eager
from inheritune.spectra.watch.probe import Watcher

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PretrainedConfig, PreTrainedModel

IMPLEMENTATION = "inheritune_probe"
"""The name under which the function is registered."""

_active: ContextVar[Watcher] = ContextVar("inheritune_active_watcher")


@contextmanager
def watched_interface(watcher: Watcher) -> Iterator[None]:
    """Let the model compute its attention through `watcher`, and leave it as it was."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(IMPLEMENTATION, _attend)
    AttentionMaskInterface.register(IMPLEMENTATION, _mask)
    token = _active.set(watcher)
    try:
        with attention_implementation(watcher.decoder.model, IMPLEMENTATION):
            yield
    finally:
        _active.reset(token)


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Compute one layer's attention for the model, which calls this in place of its own function.

    See `AttentionInputs` for the arguments.

    Returns:
        (n, T, H, d') in the dtype of `value`, and no weights.

    Raises:
        ModelError: the family computes attention in a way that this function does not reproduce.
    """
    watcher, inputs = _active.get(), AttentionInputs.from_call(module, query, key, value, attention_mask, options)
    output = watcher.attend(inputs)
    if watcher.checks:
        check_against_eager(f"{watcher.cannot}: layer {watcher.layer}", inputs, output, options)
    return output.to(value.dtype), None


def _mask(batch_size: int, *args: Any, attention_mask: Tensor | None = None, **options: Any) -> Tensor | None:
    """Return the mask that the watched model gets under its usual implementation, (n, 1, T, S), or None.

    Without padding all sequences have the same mask: it is made once and expanded. A model that can run under SDPA is
    made for masks of truth values, a quarter of the size of eager attention's masks of numbers; any other gets those.
    """
    from transformers.masking_utils import eager_mask, sdpa_mask

    alone = attention_mask is None
    make = sdpa_mask if getattr(_active.get().decoder.model, "_supports_sdpa", False) else eager_mask
    options |= {"attention_mask": attention_mask, "allow_is_causal_skip": False}
    mask: Tensor | None = make(1 if alone else batch_size, *args, **options)
    return mask.expand(batch_size, *mask.shape[1:]) if alone and mask is not None else mask


@contextmanager
def attention_implementation(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Let every configuration in the model name the attention implementation `name`, and restore the old names."""
    configs = _configs(model)
    before = [config._attn_implementation for config in configs]
    try:
        for config in configs:
            config._attn_implementation = name
        yield
    finally:
        for config, old in zip(configs, before, strict=True):  # a configuration sets its parts, which come later here
            config._attn_implementation = old


def _configs(model: PreTrainedModel) -> list[PretrainedConfig]:
    """Return the different configuration objects in the model, a whole before its parts."""
    from transformers import PretrainedConfig

    configs: dict[int, PretrainedConfig] = {}

    def add(config: Any) -> None:
        if isinstance(config, PretrainedConfig) and id(config) not in configs:
            configs[id(config)] = config
            for name in config.sub_configs:
                add(getattr(config, name, None))

    for module in model.modules():
        add(getattr(module, "config", None))
    return list(configs.values())
