"""Large batches of matrices in small pieces: bounded memory, warm caches, one worker for each processor core."""

from __future__ import annotations

import functools
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from inheritune.errors import InherituneError
from inheritune.records.analysis import Mask

PIECE_BYTES = 8 * 2**20
"""Size of the float32 matrices that one worker takes at a time; a larger matrix is a piece of its own."""

CACHED_BYTES = 2**20
"""Size of the float32 matrices that stay in a core's cache from one pass over them to the next."""

DEFAULT_MEMORY = 256 * 2**20
"""Memory, in bytes, that the analysis of attention may take beside the model's own forward pass."""

_COPIES = 10.0
"""Float32 copies of each matrix of a piece to allow for: itself, its Gram matrix, parts of both, LAPACK's own."""

_LEAST_COPIES = 3.5
"""The same where a matrix is alone in its piece, so that no parts of a batch are copied."""

_NAME = "inheritune-spectra"
"""What the names of the workers begin with."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Piece:
    """The attention probabilities of some sequences and heads of one layer under one mask.

    Attributes:
        layer: index of the block, 0-based.
        mask: which softmax.
        sequence: index of the first sequence.
        head: index of the first head.
        probabilities: (sequences, heads, T, T) float32.
    """

    layer: int
    mask: Mask
    sequence: int
    head: int
    probabilities: Tensor


Consumer = Callable[[Piece], None]
"""Takes a piece; it may be called from several threads at once, each with a piece of its own."""


def cached_size(items: Tensor) -> int:
    """Return how many of (n, C) rows or (n, R, C) matrices to work on at a time: what a cache holds; all on a GPU."""
    return max(1, CACHED_BYTES // (4 * math.prod(items.shape[1:])) if items.device.type == "cpu" else len(items))


@dataclass(frozen=True)
class WorkPlan:
    """How the work on many matrices is shared out within a memory budget.

    Attributes:
        workers: threads that work on a piece each.
        matrices: T x T matrices in a piece, at most.
    """

    workers: int
    matrices: int

    def cut(self, sequences: int, heads: int) -> Iterator[tuple[slice, slice]]:
        """Yield the sequences and heads of each piece, whole heads first, with something for every worker to do."""
        matrices = min(self.matrices, -(-sequences * heads // self.workers))
        head_step, sequence_step = min(heads, matrices), max(1, matrices // heads)
        for sequence in range(0, sequences, sequence_step):
            for head in range(0, heads, head_step):
                end = min(sequence + sequence_step, sequences), min(head + head_step, heads)
                yield slice(sequence, end[0]), slice(head, end[1])


def plan_work(length: int, memory: int, device: torch.device) -> WorkPlan:
    """Return how to share out work on T x T matrices so that all of it together takes at most `memory` bytes.

    Raises:
        InherituneError: one matrix and the work on it need more.
    """
    matrix, cpu = 4 * length**2, device.type == "cpu"
    affordable = int(memory / (_LEAST_COPIES * matrix))
    if affordable < 1:
        need = -(-int(_LEAST_COPIES * matrix) // 2**20)
        raise InherituneError(
            f"a memory budget of {memory / 2**20:.3g} MB is too small: one {length} x {length} attention matrix and "
            f"the work on it need {need} MB; pass a larger budget or shorter sequences"
        )
    workers = min(torch.get_num_threads(), affordable) if cpu else 1
    share = int(memory / workers / (_COPIES * matrix))
    return WorkPlan(workers, max(1, min(share, piece_size(length, length)) if cpu else share))


def piece_size(rows: int, columns: int) -> int:
    """Return how many R x C matrices one worker takes at a time, memory apart."""
    return max(1, PIECE_BYTES // (4 * rows * columns))


def in_pieces(function: Callable[[Tensor], tuple[Tensor, ...]], matrices: Tensor) -> tuple[Tensor, ...]:
    """Apply `function` to (n, R, C) pieces of a (..., R, C) batch and put each of its (n, ...) results together."""
    flat = matrices.reshape(-1, *matrices.shape[-2:])
    workers = torch.get_num_threads() if flat.device.type == "cpu" else 1
    size = piece_size(flat.shape[-2], flat.shape[-1])
    pieces = flat.split(min(size, max(1, -(-len(flat) // workers)))) if len(flat) else (flat,)
    results = [torch.cat(parts) for parts in zip(*map_in_threads(function, pieces, workers), strict=True)]
    return tuple(result.reshape((*matrices.shape[:-2], *result.shape[1:])) for result in results)


def map_in_threads(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> list[Result]:
    """Apply `function` to every item in `workers` threads; results in the order of the items.

    Several workers have one core each: small LAPACK problems do not use two cores by themselves, and lose several times
    their own run time to threads that wait for each other. One worker has all cores. A worker takes denormal numbers
    for zero: sharp attention is full of them, and arithmetic on them takes a hundred times as long. Both settings are
    the worker's own; the number of threads is set again here because PyTorch also remembers the last one as the default
    of threads still to be made.
    """
    before, gradients = torch.get_num_threads(), torch.is_grad_enabled()

    def alone(item: Item) -> Result:
        with torch.set_grad_enabled(gradients):
            return function(item)

    work = list(items)
    if threading.current_thread().name.startswith(_NAME):  # a worker itself: waiting for others could be for ever
        return [function(item) for item in work]
    pool = _pool(workers, 1 if workers > 1 else before, os.getpid())
    futures: list[Future[Result]] = []
    try:
        futures += [pool.submit(alone, item) for item in work]
        return [future.result() for future in futures]
    finally:
        for future in futures:
            future.cancel()
        wait(futures)  # after an error too, nothing goes on behind the caller's back
        torch.set_num_threads(before)


@functools.cache
def _pool(workers: int, cores: int, process: int) -> ThreadPoolExecutor:
    """Return the threads of this process that work with `cores` cores each.

    They stay: in a new thread every first product of matrices waits for buffers of its own.
    """

    def begin() -> None:
        torch.set_flush_denormal(True)
        torch.set_num_threads(cores)

    return ThreadPoolExecutor(workers, thread_name_prefix=_NAME, initializer=begin)
