"""A decoder's forward pass, taken up at any of its blocks: what stands before the block is not computed again.

The model's own forward pass runs from its start, whatever the family's code does there (embeddings, masks, positions),
with stand-ins for its blocks. Those before the block answer at once with what the last block that has run gave; at the
block itself the pass is stopped by an exception that carries the arguments, with which the block can be called. This
costs the embeddings and masks once for each block, little beside a block.

It is exact for a model whose code between two blocks uses nothing but the last block's output. `replays` tries it
out with stand-ins that return random numbers. Where blocks fill a dictionary that later blocks read (the keys and
values that Gemma 3n's layers share), all are given the same one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from inheritune.checkpoints.stored import IN_MEMORY
from inheritune.decoder.view import Decoder
from inheritune.errors import ModelError

if TYPE_CHECKING:
    from torch import nn


class NotByLayerError(ModelError):
    """The blocks of a model cannot be run one by one."""

    def __init__(self) -> None:
        why = "its blocks use more than the output of the block before"
        super().__init__(f"cannot read this model by layer: {why}; {IN_MEMORY}")


class _ReachedError(BaseException):
    """Ends a forward pass at a block; no `except Exception` in a model's code may stop it."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.args, self.kwargs = args, kwargs


@dataclass
class Replay:
    """One chunk's forward pass, started again for each block.

    Attributes:
        output: what the last block that has run returned.
        shared: dictionaries among the named arguments of the first block that has them, for all blocks.
        form: the output of any block, for passes that leave out the first blocks: what these are given is returned in
            that form.
    """

    output: Any = None
    shared: dict[str, MutableMapping[Any, Any]] = field(default_factory=dict)
    form: Any = None

    def call_of(self, layer: int, current: Answers, run: Callable[[], object]) -> _ReachedError | None:
        """Return the arguments with which the model calls block `layer`, or None if it never does.

        Raises:
            NotByLayerError: the model calls another block first.
        """

        def answer(number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if number == layer:
                raise _ReachedError(args, kwargs)
            return self.answer(number, args, kwargs)

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

    def answer(self, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what block `number`, which does not run, answers to its arguments.

        That is the last block's output; or, before any has run, the hidden states (n, T, D) that it is called with, as
        a block returns them: alone or in a tuple.

        Raises:
            NotByLayerError: no block has run yet, and no `form` says that blocks are left out.
        """
        if self.output is not None:
            return self.output
        if self.form is None:
            raise NotByLayerError  # a later block runs first
        hidden = args[0] if args else kwargs["hidden_states"]
        return (hidden, *self.form[1:]) if isinstance(self.form, tuple | list) else hidden

    def branch(self) -> Replay:
        """Return a pass that goes on from here by itself."""
        from torch import Tensor
        from torch.utils._pytree import tree_map_only

        shared = {name: copy.copy(value) for name, value in self.shared.items()}
        return replace(self, output=tree_map_only(Tensor, Tensor.clone, self.output), shared=shared)


@dataclass
class Answers:
    """What the stand-ins do when they are called: with a block's number, its arguments and its named arguments."""

    answer: Callable[[int, tuple[Any, ...], dict[str, Any]], Any]


@contextmanager
def stand_ins(blocks: nn.ModuleList) -> Iterator[tuple[list[nn.Module], Answers]]:
    """Put stand-ins in the blocks' places; give the blocks, and what decides how the stand-ins answer."""
    originals = list(blocks)
    current = Answers(lambda number, args, kwargs: None)
    try:
        for layer, block in enumerate(originals):
            blocks[layer] = _stand_in(layer, block, current)
        yield originals, current
    finally:
        for layer, block in enumerate(originals):
            blocks[layer] = block


def _stand_in(layer: int, block: nn.Module, current: Answers) -> nn.Module:
    """Return a twin of `block` with its parts and settings, which models read, without hooks, that only answers."""
    from torch import nn

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return current.answer(layer, args, kwargs)

    kind: Any = type("StandIn", (type(block),), {"forward": forward})
    twin: nn.Module = object.__new__(kind)
    twin.__dict__ = {name: value for name, value in vars(block).items() if name != "forward"}
    twin.__dict__ |= {name: value for name, value in vars(nn.Module()).items() if "hook" in name}
    return twin


def replays(decoder: Decoder, current: Answers, like: Any, run: Callable[[], object]) -> bool:
    """Return whether the model calls each block with nothing but what the last block's output and its own inputs make.

    One pass in which each block returns random numbers of its own is compared with the passes that `Replay` makes.

    Args:
        decoder: the model.
        current: what the stand-ins do.
        like: the output of a block, a tensor (n, T, D) or a tuple of it and others.
        run: runs the base model on one chunk.

    Raises:
        ModelError: the model runs a block more than once.
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
        replay = Replay(outputs[order[place - 1]] if place else None)
        call = replay.call_of(layer, current, run)
        same = same and call is not None and _equal((args, kwargs), (call.args, call.kwargs))
    return same


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
