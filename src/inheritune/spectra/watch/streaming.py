"""Push all sequences through a model block by block, so that only one block's weights are in memory at a time.

The model's own forward pass runs once for each chunk of sequences, whatever the family's code does between its blocks:
masks, position embeddings, residual streams. Each forward pass has a thread of its own, which stops where it calls a
block. When all have arrived at block i, its weights are read, the main thread runs the block on every chunk in turn
and lets each forward pass go on to block i + 1, and the weights are dropped. Exactly one thread runs at any time, so
nothing needs a lock. The blocks, their hooks and what the hooks call all run in the main thread, where errors and
Ctrl-C come out as without threads; tensor operations between the blocks are handed to it too, because each thread that
computes would get a pool of OpenMP threads of its own.

What stays in memory: two hidden states of all N sequences (the embeddings and the last block's output, each
N * T * D * bytes of an element) and whatever else a family's code keeps for its later blocks. Equal attention masks are
kept once.
"""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from inheritune.decoder.streaming import StreamedDecoder
from inheritune.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

_MASKS_KEPT = 8
_STACK_BYTES = 2 * 2**20  # not the usual 8 MiB, which count where a process's data is limited
_passing: contextvars.ContextVar[_Pass] = contextvars.ContextVar("inheritune_forward_pass")


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
        run_chunk: runs the base model on one chunk, given its number; called in a thread of its own, in the caller's
            context (contextvars), and like all else here without gradients.
        at_block: called with the chunk's number and the block's in the main thread before the block runs on the chunk;
            the block's hooks run after it, in the main thread too.
        trial: give the blocks zeros for weights, which reads no file.

    Raises:
        ModelError: weights are missing or damaged, or the model runs a block more than once.
        Exception: whatever `run_chunk`, `at_block` or a hook raises; all forward passes have ended then.
    """
    import torch

    weights = decoder.weights
    passes = [_Pass(number, run_chunk) for number in range(chunks)]
    try:
        with torch.no_grad(), _stopping_at(decoder.blocks) as blocks, _masks_kept_once(decoder):
            for one in passes:
                one.start()
            while any(one.call for one in passes):
                layer = min(one.call.layer for one in passes if one.call)
                with weights.blank(layer) if trial else weights.loaded(layer):
                    if not trial:
                        weights.read_ahead(layer + 1)
                    _run_block(decoder, blocks[layer], layer, passes, at_block)
    finally:
        for one in passes:
            one.end()


def _run_block(
    decoder: StreamedDecoder,
    block: nn.Module,
    layer: int,
    passes: Sequence[_Pass],
    at_block: Callable[[int, int], None],
) -> None:
    """Run one block for every forward pass that waits for it, and let each go on to its next block."""
    for one in passes:
        if one.call is None or one.call.layer != layer:
            continue
        if layer in one.passed:
            family = type(decoder.model).__name__
            raise ModelError(f"cannot analyse {family}: it runs layer {layer} more than once in a forward pass")
        one.passed.add(layer)
        at_block(one.number, layer)
        one.go_on(one.take().of(block))


@dataclass(frozen=True)
class _Call:
    """A forward pass's call of a block."""

    layer: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def of(self, block: nn.Module) -> Any:
        return block(*self.args, **self.kwargs)


@dataclass(frozen=True)
class _Operation:
    """A tensor operation between the blocks."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def result(self) -> Any:
        """Compute it; an error is for the forward pass, whose code may have an answer to it."""
        import torch

        try:
            views = torch._C.DispatchKeySet(torch._C.DispatchKey.ADInplaceOrView)
            # Below autograd and its book on views, which the forward pass's thread keeps.
            with torch._C._AutoDispatchBelowAutograd(), torch._C._ExcludeDispatchKeyGuard(views):
                return self.function(*self.args, **self.kwargs)
        except Exception as error:  # noqa: BLE001 -- raised where the operation was asked for
            return _Failed(error)


@dataclass(frozen=True)
class _Failed:
    error: Exception


class _Ended(BaseException):
    """Unwinds a forward pass that is not needed any more; no `except Exception` in a model's code may stop it."""


@dataclass
class _Pass:
    """One chunk's forward pass, in a thread that runs only while the main thread waits for it.

    Attributes:
        number: the chunk's number.
        run_chunk: what runs in the thread.
        call: the block that the pass waits for; None while it runs and after its end.
        passed: the blocks it has run.
    """

    number: int
    run_chunk: Callable[[int], object]
    call: _Call | None = None
    passed: set[int] = field(default_factory=set)
    _ended: bool = False
    _thread: threading.Thread | None = None
    _to_pass: queue.SimpleQueue[Any] = field(default_factory=queue.SimpleQueue)
    _to_main: queue.SimpleQueue[Any] = field(default_factory=queue.SimpleQueue)

    def start(self) -> None:
        """Run until the first block."""
        import torch

        context, inference = contextvars.copy_context(), torch.is_inference_mode_enabled()
        target, name = context.run, f"chunk {self.number}"
        self._thread = threading.Thread(target=target, args=(self._run, inference), name=name, daemon=True)
        before = threading.stack_size(_STACK_BYTES)
        try:
            self._thread.start()
        finally:
            threading.stack_size(before)
        self._wait()

    def take(self) -> _Call:
        """Return the call that the pass waits for; nothing here holds its tensors any longer."""
        assert self.call is not None
        call, self.call = self.call, None
        return call

    def go_on(self, output: Any) -> None:
        """Give the pass its block's output and run until the next block or the end.

        Raises:
            Exception: what the model's code raised.
        """
        self._to_pass.put(output)
        self._wait()

    def end(self) -> None:
        """End the thread, wherever it is."""
        if self._thread is not None and self._thread.ident is not None:
            self._to_pass.put(_Ended())
            self._thread.join()

    def ask(self, wanted: _Call | _Operation) -> Any:
        """Hand a call of a block or an operation to the main thread and return the result; called in the thread."""
        if self._ended:
            raise _Ended
        self._to_main.put(wanted)
        answer = self._to_pass.get()
        if isinstance(answer, _Ended):
            self._ended = True
            raise answer
        if isinstance(answer, _Failed):
            raise answer.error
        return answer

    def _wait(self) -> None:
        """Compute what the pass asks for until it waits for a block or has ended."""
        while isinstance(event := self._to_main.get(), _Operation):
            self._to_pass.put(event.result())
        if isinstance(event, BaseException):
            raise event
        self.call = event

    def _run(self, inference: bool) -> None:
        import torch

        _passing.set(self)
        try:
            with torch.inference_mode(inference), torch.no_grad(), _computing_elsewhere(self):
                self.run_chunk(self.number)
            self._to_main.put(None)
        except _Ended:
            pass
        except BaseException as error:  # noqa: BLE001 -- the main thread raises it
            self._to_main.put(error)


def _computing_elsewhere(one: _Pass) -> AbstractContextManager[Any]:
    """Hand every tensor operation of this thread to the main thread."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Elsewhere(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return one.ask(_Operation(func, args, kwargs or {}))

    return Elsewhere()


@contextmanager
def _stopping_at(blocks: nn.ModuleList) -> Iterator[list[nn.Module]]:
    """Put gates in the blocks' places, at which a forward pass stops, and return the blocks."""
    originals = list(blocks)
    try:
        for layer, block in enumerate(originals):
            blocks[layer] = _gate(layer, block)
        yield originals
    finally:
        for layer, block in enumerate(originals):
            blocks[layer] = block


def _gate(layer: int, block: nn.Module) -> nn.Module:
    """Return a twin of `block` that shares its parts, weights and settings, has no hooks, and asks for its output."""
    from torch import nn

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return _passing.get().ask(_Call(layer, args, kwargs))

    kind: Any = type("Gate", (type(block),), {"forward": forward})
    twin: nn.Module = object.__new__(kind)
    twin.__dict__ = {name: value for name, value in vars(block).items() if name != "forward"}
    twin.__dict__ |= {name: value for name, value in vars(nn.Module()).items() if "hook" in name}
    return twin


@contextmanager
def _masks_kept_once(decoder: StreamedDecoder) -> Iterator[None]:
    """Let the forward passes share equal masks, which transformers makes anew for each: T * T elements or more."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    functions = ALL_MASK_ATTENTION_FUNCTIONS
    name = decoder.config._attn_implementation
    if name not in functions:
        yield
        return
    before, make = functions._local_mapping.get(name), functions[name]
    kept: list[Tensor] = []

    def make_once(*args: Any, **kwargs: Any) -> Any:
        return _known(make(*args, **kwargs), kept)

    functions[name] = make_once
    try:
        yield
    finally:
        del functions[name]
        if before is not None:
            functions[name] = before


def _known(mask: Any, kept: list[Tensor]) -> Any:
    """Return the tensor in `kept` that equals `mask`, or `mask`, which is kept from then on."""
    import torch

    if not isinstance(mask, torch.Tensor):
        return mask
    for other in kept:
        if other.dtype == mask.dtype and torch.equal(other, mask):
            return other
    kept.append(mask)
    del kept[:-_MASKS_KEPT]
    return mask
