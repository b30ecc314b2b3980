"""The watched forward pass: where it is, and the attention that it computes through the AttentionInterface.

A model calls the function that transformers holds under the name in its configuration: here one that hands its inputs
to the watcher, which computes the attention in its place.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, eager_mask, sdpa_mask

from inheritune.decoder import Decoder
from inheritune.errors import ModelError
from inheritune.records.analysis import Mask
from inheritune.spectra.measure.pieces import DEFAULT_MEMORY, Consumer, Piece, map_in_threads, plan_work
from inheritune.spectra.watch.attention import AttentionInputs, check_against_eager

BAND = 256
"""Rows of a matrix that are looked at together."""


@dataclass
class Watcher:
    """A watched forward pass.

    Attributes:
        decoder: the model.
        sequence: index of the first sequence of the chunk that runs.
        layer: the block that is running, or None between blocks.
        entered: the blocks that have run, each with its chunk's first sequence.
    """

    AIM: ClassVar[str] = "analyse"

    decoder: Decoder
    sequence: int = field(default=0, init=False)
    layer: int | None = field(default=None, init=False)
    entered: set[tuple[int, int]] = field(default_factory=set, init=False)

    @property
    def cannot(self) -> str:
        """The first words of a message."""
        return f"cannot {self.AIM} {self.family}"

    @property
    def family(self) -> str:
        """The model's class, for messages."""
        return type(self.decoder.model).__name__

    @property
    def checks(self) -> bool:
        """Whether a layer that runs now is checked: in the first chunk."""
        return self.layer is not None and self.sequence == 0

    @abstractmethod
    def attend(self, inputs: AttentionInputs) -> Tensor:
        """Return what a layer's attention gives, (n, T, H, d')."""

    def enter(self, layer: int) -> None:
        """Note that block `layer` begins.

        Raises:
            ModelError: the model is recurrent in depth; one matrix per layer and head would not describe it.
        """
        if (self.sequence, layer) in self.entered:
            raise ModelError(f"{self.cannot}: it runs layer {layer} more than once in a forward pass")
        self.entered.add((self.sequence, layer))
        self.layer = layer

    def leave(self) -> None:
        """Note that the block has ended."""
        self.layer = None

    @contextmanager
    def blocks(self, passed: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Notice which block is running, and call `passed` after each block."""

        def leave(*_: Any) -> None:
            self.leave()
            passed()

        with ExitStack() as stack:
            for layer, block in enumerate(self.decoder.blocks):
                stack.enter_context(block.register_forward_pre_hook(lambda *_, layer=layer: self.enter(layer)))
                stack.enter_context(block.register_forward_hook(leave))
            stack.callback(self.leave)
            yield


@dataclass
class Probe(Watcher):
    """A forward pass whose attention probabilities are handed out in pieces.

    Attributes:
        masks: which softmaxes are wanted; none in a trial run.
        consumer: who gets the pieces.
        memory: bytes that the work on the pieces may take.
        head: number of heads that the block's attention modules have had so far.
        heads: the most heads that a block has had.
        queries: the modules that have attended in the running block, with their queries.
    """

    masks: Sequence[Mask]
    consumer: Consumer
    memory: int = DEFAULT_MEMORY
    head: int = 0
    heads: int = 0
    queries: list[tuple[nn.Module, Tensor]] = field(default_factory=list)

    @property
    def checks(self) -> bool:
        """Whether a layer that runs now is checked: in the first chunk, and not in a trial."""
        return super().checks and bool(self.masks)

    def enter(self, layer: int) -> None:
        """Note that block `layer` begins; see `Watcher.enter`."""
        super().enter(layer)
        self.head, self.queries = 0, []

    def leave(self) -> None:
        """Note that the block has ended."""
        super().leave()
        self.queries = []

    def pass_heads(self, heads: int) -> None:
        """Note that an attention module of the running block with so many heads is done."""
        self.head += heads
        self.heads = max(self.heads, self.head)

    def attend(self, inputs: AttentionInputs) -> Tensor:
        """Return what a layer's attention gives, (n, T, H, d') float32, and hand out its probabilities.

        Raises:
            ModelError: the softmax without the mask is wanted and cannot be told, or as `emit`.
        """
        if self.checks and "full" in self.masks and not inputs.only_masks():
            raise ModelError(
                f"{self.family} adds a bias to its logits through the attention mask, so the softmax without the mask "
                'cannot be told: use mask="causal" (--mask causal)'
            )
        query, value = inputs.query, inputs.value
        n, heads, rows, _ = query.shape
        output = torch.empty(n, rows, heads, value.shape[-1], dtype=torch.float32, device=query.device)
        emits = self.layer is not None and self._is_new(inputs.module, query)

        def attend(cut: tuple[slice, slice]) -> None:
            output[cut[0], :, cut[1]] = self._attend(inputs, *cut, emits)

        plan = plan_work(max(rows, inputs.key.shape[2]), self.memory, query.device)
        map_in_threads(attend, plan.cut(n, heads), plan.workers)
        if emits:
            self.pass_heads(heads)
        return output

    def _attend(self, inputs: AttentionInputs, sequences: slice, heads: slice, emits: bool) -> Tensor:
        """Return the mixed values (n', T, h', d') of some sequences and heads; emit their probabilities if asked to."""
        logits = inputs.logits(sequences, heads)
        if emits and "full" in self.masks:
            # Large matrices come one by one and fill the memory: there the logits are made again instead of copied.
            alone = logits.shape[:2] == (1, 1)
            full = inputs.probabilities(logits if alone else logits.clone(), sequences, heads)
            self.emit("full", sequences.start, heads.start, full)
            del full
            logits = inputs.logits(sequences, heads) if alone else logits
        causal = inputs.probabilities(inputs.hide(logits, sequences, heads), sequences, heads)
        mixed = inputs.mix(causal, sequences, heads)
        if emits:
            self.emit("causal", sequences.start, heads.start, causal)
        return mixed

    def _is_new(self, module: nn.Module, query: Tensor) -> bool:
        """Return whether the running block has not attended with these queries (n, H, T, d) before.

        DiffLlama mixes two halves of its values by the same probabilities, in two calls: they are one set of heads.
        """
        new = not any(owner is module and old.data_ptr() == query.data_ptr() for owner, old in self.queries)
        self.queries.append((module, query))  # holds the queries, so that no others get their place in memory
        return new

    def emit(self, mask: Mask, sequence: int, head: int, probabilities: Tensor) -> None:
        """Hand one piece of the running block, (sequences, heads, T, T), to the consumer, if its mask is wanted.

        Its first `sequence` counts from the chunk's first, its first `head` from the attention module's first.

        Raises:
            ModelError: the probabilities are not finite, not square or not causal.
        """
        if self.layer is None or mask not in self.masks:
            return
        rows, columns = probabilities.shape[-2:]
        if rows != columns:
            raise ModelError(
                f"{self.cannot}: layer {self.layer} attends from {rows} tokens to {columns} keys, "
                "expected a square attention matrix"
            )
        if not probabilities.sum().isfinite():
            raise ModelError(f"the attention of layer {self.layer} of {self.family} is not finite (NaN or overflow)")
        bands = enumerate(probabilities[0, 0].split(BAND))
        if mask == "causal" and any(bool(band[:, i * BAND :].triu(1).any()) for i, band in bands):
            raise ModelError(f"{self.family} attends to later tokens: expected a decoder with causal attention")
        self.consumer(Piece(self.layer, mask, self.sequence + sequence, self.head + head, probabilities))


IMPLEMENTATION = "inheritune_probe"
"""The name under which the function is registered."""

_active: ContextVar[Watcher] = ContextVar("inheritune_active_watcher")


@contextmanager
def watched_interface(watcher: Watcher) -> Iterator[None]:
    """Let the model compute its attention through `watcher`, and leave it as it was."""
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

    See `AttentionInputs` for the arguments. What is returned is (n, T, H, d') in the dtype of `value`, and no weights.
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
    configs: dict[int, PretrainedConfig] = {}

    def add(config: Any) -> None:
        if isinstance(config, PretrainedConfig) and id(config) not in configs:
            configs[id(config)] = config
            for name in config.sub_configs:
                add(getattr(config, name, None))

    for module in model.modules():
        add(getattr(module, "config", None))
    return list(configs.values())
