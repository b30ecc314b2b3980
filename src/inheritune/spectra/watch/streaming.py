"""Push all sequences through a model block by block, so that only one block's weights are in memory at a time.

For each block and each chunk of sequences the model's own forward pass runs again from its start, whatever the family's
code does there (embeddings, masks, positions), with stand-ins for the blocks before: each returns at once what the
last block that has run gave for this chunk. At the block itself the pass is stopped by an exception that carries the
arguments, and the block is called with them while its weights are in memory. This costs the embeddings and masks once
for each block, little beside a block.

It is exact for a model whose code between two blocks uses nothing but the last block's output. Whether that is so is
tried out with stand-ins that return random numbers, before any weight is read (`_check_replay`). Where blocks fill a
dictionary that later blocks read (the keys and values that Gemma 3n's layers share), all are given the same one.

What stays in memory: one block's output, N * T * D elements, and those dictionaries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from inheritune.checkpoints.stored import IN_MEMORY
from inheritune.decoder.streaming import StreamedDecoder
from inheritune.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

NOT_BY_LAYER = f"cannot read this model by layer: its blocks use more than the output of the block before; {IN_MEMORY}"


def run_by_layer(
    decoder: StreamedDecoder,
    chunks: int,
    run_chunk: Callable[[int], object],
    at_block: Callable[[int, int], None] = lambda chunk, layer: None,
    trial: bool = False,
) -> None:
    """Run a forward pass for each chunk, all of them through one block before any goes on to the next.

    Args:
        decoder: the model.
        chunks: number of chunks.
        run_chunk: runs the base model on one chunk, given its number, without changing anything; it is called once for
            each block, and like all else here without gradients.
        at_block: called with the chunk's number and the block's before the block runs on the chunk.
        trial: give the blocks zeros for weights, which reads no file, and check that blocks can run one by one.

    Raises:
        ModelError: weights are missing or damaged; in a trial: the model runs its blocks in a way of its own.
    """
    import torch

    weights, last = decoder.weights, [_Replay() for _ in range(chunks)]
    with torch.no_grad(), _stand_ins(decoder.blocks) as (blocks, current):
        for layer, block in enumerate(blocks):
            with weights.blank(layer) if trial else weights.loaded(layer):
                if not trial:
                    weights.read_ahead(layer + 1)
                for chunk, replay in enumerate(last):
                    call = replay.call_of(layer, current, partial(run_chunk, chunk))
                    if call is not None:
                        at_block(chunk, layer)
                        replay.output = block(*call.args, **call.kwargs)
                    del call  # holds the states before the block
        if trial:
            _check_replay(decoder, current, last[0].output, partial(run_chunk, 0))


class _ReachedError(BaseException):
    """Ends a forward pass at a block; no `except Exception` in a model's code may stop it."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.args, self.kwargs = args, kwargs


@dataclass
class _Replay:
    """One chunk's forward pass, started again for each block.

    Attributes:
        output: what the last block that has run returned.
        shared: dictionaries among the named arguments of the first block that has them, for all blocks.
    """

    output: Any = None
    shared: dict[str, MutableMapping[Any, Any]] = field(default_factory=dict)

    def call_of(self, layer: int, current: _Current, run: Callable[[], object]) -> _ReachedError | None:
        """Return the arguments with which the model calls block `layer`, or None if it never does.

        Raises:
            ModelError: the model calls another block first.
        """

        def answer(number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if number == layer:
                raise _ReachedError(args, kwargs)
            if self.output is None:
                raise ModelError(NOT_BY_LAYER)  # a later block runs first
            return self.output

        current.answer = answer
        try:
            run()
        except _ReachedError as reached:
            call = reached.with_traceback(None)  # which holds all that the model's code has at hand
        else:
            return None
        named = {name: value for name, value in call.kwargs.items() if isinstance(value, MutableMapping)}
        self.shared = named | self.shared
        call.kwargs |= {name: self.shared[name] for name in named}
        return call


@dataclass
class _Current:
    """What the stand-ins do when they are called: with a block's number, its arguments and its named arguments."""

    answer: Callable[[int, tuple[Any, ...], dict[str, Any]], Any]


def _check_replay(decoder: StreamedDecoder, current: _Current, like: Any, run: Callable[[], object]) -> None:
    """Refuse a model that calls a block with anything but what the last block's output and its own inputs make.

    One pass in which each block returns random numbers of its own is compared with the passes that `_Replay` makes.

    Args:
        decoder: the model.
        current: what the stand-ins do.
        like: the output of a block, a tensor (n, T, D) or a tuple of it and others.
        run: runs the base model on one chunk.

    Raises:
        ModelError: an argument of a block differs, or the blocks do not run once each, in order.
    """
    family, order, calls = type(decoder.model).__name__, [], []
    outputs = [_random_like(like, layer) for layer in range(decoder.layers)]

    def answer(number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if number in order:
            raise ModelError(f"cannot analyse {family}: it runs layer {number} more than once in a forward pass")
        order.append(number)
        calls.append((args, kwargs))
        return outputs[number]

    current.answer = answer
    run()
    same = order == sorted(order)
    for place, (layer, (args, kwargs)) in enumerate(zip(order, calls, strict=True)):
        replay = _Replay(outputs[order[place - 1]] if place else None)
        call = replay.call_of(layer, current, run)
        same = same and call is not None and _equal((args, kwargs), (call.args, call.kwargs))
    if not same:
        raise ModelError(NOT_BY_LAYER)


def _random_like(value: Any, seed: int) -> Any:
    """Return random numbers in the shape and type of a block's output: a tensor, or a tuple whose first is one."""
    import torch

    if isinstance(value, tuple | list):
        return (_random_like(value[0], seed), *value[1:])
    numbers = torch.randn(value.shape, generator=torch.Generator().manual_seed(seed))
    return numbers.to(value)


def _equal(one: Any, two: Any) -> bool:
    """Return whether two arguments hold the same tensors, bit for bit; other objects than these are not compared."""
    from torch import Tensor, equal
    from torch.utils._pytree import tree_flatten

    (ones, form), (twos, other) = tree_flatten(one), tree_flatten(two)
    return form == other and all(
        equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else type(a) is type(b)
        for a, b in zip(ones, twos, strict=True)
    )


@contextmanager
def _stand_ins(blocks: nn.ModuleList) -> Iterator[tuple[list[nn.Module], _Current]]:
    """Put stand-ins in the blocks' places; give the blocks, and what decides how the stand-ins answer."""
    originals = list(blocks)
    current = _Current(lambda number, args, kwargs: None)
    try:
        for layer, block in enumerate(originals):
            blocks[layer] = _stand_in(layer, block, current)
        yield originals, current
    finally:
        for layer, block in enumerate(originals):
            blocks[layer] = block


def _stand_in(layer: int, block: nn.Module, current: _Current) -> nn.Module:
    """Return a twin of `block` with its parts and settings, which models read, without hooks, that only answers."""
    from torch import nn

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return current.answer(layer, args, kwargs)

    kind: Any = type("StandIn", (type(block),), {"forward": forward})
    twin: nn.Module = object.__new__(kind)
    twin.__dict__ = {name: value for name, value in vars(block).items() if name != "forward"}
    twin.__dict__ |= {name: value for name, value in vars(nn.Module()).items() if "hook" in name}
    return twin
