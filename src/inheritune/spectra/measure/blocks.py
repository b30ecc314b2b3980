"""How much each block changes the hidden state, and how many directions its MLP's output fills.

Three measures of whole blocks from the forward pass that attention is watched in, so that a user sees whether they
agree with the rank of attention:

- Block Influence: Men et al., "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect".
- Angular distance over spans of blocks: Gromov et al., "The Unreasonable Ineffectiveness of the Deeper Layers".
- MLP rank and MLP mass: ours. The rank and mass that Sanyal et al. (arXiv 2404.08634, section 2 and appendix C) define
  for attention matrices, taken of the (T, D) matrix of an MLP's outputs. The paper leaves MLPs open.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial, reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from inheritune.decoder import Decoder
from inheritune.errors import ModelError
from inheritune.spectra.measure.pieces import map_in_threads
from inheritune.spectra.measure.rank import approximate_rank, column_mass
from inheritune.spectra.result import BlockMeasures, Values

PIECE_BYTES = 4 * 2**20
"""Size of a float64 copy of hidden states or MLP outputs that is worked on at a time: it stays in a core's cache."""

_MLP_NAME = re.compile(r"(^|_)(mlp|ffn|ff|feed_?forward|moe)(_block)?$")
_MLP_CLASS = re.compile(r"(MLP|Mlp|MoE|Moe|FeedForward)$")


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> tuple[float, float] | None:
    """Return how far two measures of the same n layers order them alike: Spearman's correlation and its two-sided p.

    None where there is no order: fewer than three layers, or a measure that is the same for all.
    """
    from scipy.stats import spearmanr

    if len(one) < 3 or any(len({*values}) < 2 for values in (one, other)):
        return None
    correlation, p_value = spearmanr(one, other)
    return float(correlation), float(p_value)


class BlockObserver:
    """Watches every block of a decoder during forward passes; `measures()` says afterwards what was seen.

    An instance is an observer of `visit_attention`: called with a decoder it gives a context manager that holds the
    hooks. Each block must see all sequences in the same order; whether a chunk of sequences goes through all blocks
    before the next, or all chunks through a block before the next block, makes no difference to the result.

    Memory: pieces of the hidden states, the float32 Gram matrices of the MLP outputs (min(T, D) squared, for the
    sequences that the workers have in hand), and the last token's hidden state, in the model's own dtype, at each of
    the L + 1 block boundaries for the sequences that have not passed the last block. In the usual order those are the
    sequences of one chunk; block by block all N (131 MB for N = 100, L = 80, D = 8192 in bfloat16), because the
    distance across a span needs both ends of it.
    """

    def __init__(self, tau: float = 0.9, eta: float = 0.9) -> None:
        """Observe with these thresholds of the MLP rank (`tau`) and the MLP mass (`eta`), both between 0 and 1."""
        self.tau, self.eta = tau, eta
        self._blocks: list[_Tally] = []
        self._ends = _LastTokens(0)
        self._running: int | None = None
        self._outputs: list[Tensor] = []

    @contextmanager
    def __call__(self, decoder: Decoder) -> Iterator[None]:
        """Observe `decoder` as long as the context is open; what was seen before is forgotten."""
        self._blocks = [_Tally() for _ in decoder.blocks]
        self._ends = _LastTokens(decoder.layers)
        with ExitStack() as stack:
            for layer, block in enumerate(decoder.blocks):
                for module in mlp_modules(block):
                    stack.enter_context(module.register_forward_hook(partial(self._keep_output, layer)))
                stack.enter_context(block.register_forward_pre_hook(partial(self._enter, layer)))
                stack.enter_context(block.register_forward_hook(partial(self._leave, layer), with_kwargs=True))
            yield

    def measures(self) -> BlockMeasures:
        """Return the measures over all sequences that were seen; a ValueError where there were none."""
        if not any(block.calls for block in self._blocks):
            raise ValueError("no forward pass was observed")
        ranks, errors = zip(*(_mean_and_error(block.ranks) for block in self._blocks), strict=True)
        return BlockMeasures(
            influence=np.array([1.0 - b.cosines / b.tokens if b.tokens else math.nan for b in self._blocks]),
            angular_distance=self._ends.means(),
            mlp_rank=np.array(ranks),
            mlp_rank_error=np.array(errors),
            mlp_mass=np.array([_mean_and_error(block.masses)[0] for block in self._blocks]),
        )

    def _enter(self, layer: int, *_: Any) -> None:
        self._running = layer
        self._outputs.clear()

    def _keep_output(self, layer: int, module: nn.Module, args: Any, output: Any) -> None:
        """Keep an MLP's output until its block ends: a copy, because Falcon's blocks add to it in place."""
        tensor = _first_tensor(output)
        if self._running == layer and tensor is not None:  # one MLP may be shared by several blocks
            self._outputs.append(tensor.reshape(-1, tensor.shape[-1]).clone())

    def _leave(self, layer: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Measure a block that has run, and let go of what it left."""
        self._running = None
        outputs, self._outputs = self._outputs, []
        before = _first_tensor(args[0] if args else kwargs.get("hidden_states"))
        after = _first_tensor(output)
        tally = self._blocks[layer]
        tally.calls += 1
        if before is None or after is None or before.ndim != 3 or before.shape != after.shape:
            return  # several streams of hidden states, or none that could be found: no number rather than a wrong one
        tally.cosines += _cosine_sum(before, after)
        tally.tokens += before.shape[0] * before.shape[1]
        self._ends.put(layer, before[:, -1])
        if layer == len(self._blocks) - 1:
            self._ends.put(layer + 1, after[:, -1])
            self._ends.settle(len(after))
        if outputs and all(len(rows) == before.shape[0] * before.shape[1] for rows in outputs):
            total = reduce(lambda one, other: one.float() + other.float(), outputs)  # the usual single one as it is
            self._measure_mlp(layer, total.reshape(*before.shape[:2], -1))

    def _measure_mlp(self, layer: int, outputs: Tensor) -> None:
        """Note rank and mass of each sequence's (T, D) matrix of MLP outputs."""
        if not outputs.sum(dtype=torch.float32).isfinite():
            raise ModelError(f"the MLP output of layer {layer} is not finite (NaN or overflow)")
        columns = outputs.mT  # (n, D, T): a column for each token
        narrow = columns if outputs.shape[1] <= outputs.shape[2] else outputs  # the same singular values
        self._blocks[layer].ranks += approximate_rank(narrow, self.tau).tolist()
        self._blocks[layer].masses += column_mass(columns, self.eta).tolist()


@dataclass
class _Tally:
    """What has been seen of one block: its calls, the sum of cosines and the tokens in it, k* and mass per sequence."""

    calls: int = 0
    cosines: float = 0.0
    tokens: int = 0
    ranks: list[float] = field(default_factory=list)
    masses: list[float] = field(default_factory=list)


def _mean_and_error(values: list[float]) -> tuple[float, float]:
    """Return the mean and its standard error; NaN for what too few values leave open."""
    mean = float(np.mean(values)) if values else math.nan
    return mean, float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else math.nan


class _LastTokens:
    """The last token's states at the block boundaries, kept until a sequence has passed the last block."""

    def __init__(self, layers: int) -> None:
        self._waiting: list[list[Tensor]] = [[] for _ in range(layers + 1)]
        self._total = np.zeros((layers, layers + 1))
        self._sequences = 0

    def put(self, boundary: int, states: Tensor) -> None:
        """Keep (n, D) states at a boundary: l is the input of block l."""
        self._waiting[boundary].append(states.detach().to("cpu", copy=True))

    def settle(self, count: int) -> None:
        """Add the distances of the first `count` sequences that wait, and forget their states."""
        states = []
        for number, queue in enumerate(self._waiting):
            rows = torch.cat(queue) if queue else torch.empty(0, 0)
            self._waiting[number] = [rows[count:]] if len(rows) > count else []
            states.append(rows[:count])
        self._sequences += count
        if len({rows.shape for rows in states}) > 1:  # a boundary was not seen, or the width changes
            self._total[:] = np.nan
            return
        for boundaries in torch.stack(states, dim=1).double():  # (L + 1, D) of one sequence
            boundaries /= boundaries.norm(dim=-1, keepdim=True).clamp(min=_TINY)
            distance = ((boundaries @ boundaries.mT).clamp(-1, 1).arccos() / np.pi).numpy()
            for layer, row in enumerate(self._total):
                row[1 : len(row) - layer] += distance[layer, layer + 1 :]

    def means(self) -> Values:
        """Return (L, L + 1) means over the sequences, NaN where there is no such span."""
        layers = len(self._total)
        spans = np.add.outer(np.arange(layers), np.arange(layers + 1))
        known = (spans <= layers) & (np.arange(layers + 1) > 0) & (self._sequences > 0)
        return np.where(known, self._total / max(self._sequences, 1), np.nan)


_TINY = 1e-300
"""Stands for the norm of a zero vector, whose cosine with any other is then 0."""


def mlp_modules(block: nn.Module) -> list[nn.Module]:
    """Return the modules in a block whose outputs, added up, are its MLP's output: none, one, or (Granite-MoE) two.

    They are the block's direct children with the name of a feed-forward part (`mlp`, `ffn`, `feed_forward`,
    `block_sparse_moe`, `shared_mlp`, RecurrentGemma's `mlp_block`), else `fc2` where `fc1` and `fc2` lie directly in
    the block (OPT, XGLM, BioGPT), else those whose class is a feed-forward one (Nemotron-H calls every mixer `mixer`).
    A block whose experts lie directly in it (Gemma 4 with experts) mixes their output with another in a way that names
    do not tell: it has no module that gives the MLP's output.
    """
    children = dict(block.named_children())
    if "experts" in children:
        return []
    named = [module for name, module in children.items() if _MLP_NAME.search(name)]
    if named:
        return named
    if {"fc1", "fc2"} <= children.keys():
        return [children["fc2"]]
    return [module for module in children.values() if _MLP_CLASS.search(type(module).__name__)]


def _first_tensor(value: Any) -> Tensor | None:
    """Return a module's main output, (n, T, D): the value itself or the first of several."""
    if isinstance(value, tuple | list) and value:
        value = value[0]
    return value if isinstance(value, torch.Tensor) else None


def _cosine_sum(one: Tensor, two: Tensor) -> float:
    """Return the sum of the cosines of the (n, T, D) tokens' states before and after.

    The products and their sums are float32 (float64 for a float64 model): a cosine is right to about 1e-7.
    """
    dtype = torch.promote_types(one.dtype, torch.float32)
    step = max(1, PIECE_BYTES // (32 * one.shape[-1]))

    def cosines(pair: tuple[Tensor, Tensor]) -> float:
        first, second = (states.to(dtype) for states in pair)
        norms = torch.linalg.vector_norm(first, dim=-1).double() * torch.linalg.vector_norm(second, dim=-1).double()
        return float((torch.linalg.vecdot(first, second).double() / norms.clamp_(min=_TINY)).sum())

    pairs = zip(one.flatten(0, 1).split(step), two.flatten(0, 1).split(step), strict=True)
    return sum(map_in_threads(cosines, pairs, torch.get_num_threads() if one.device.type == "cpu" else 1))
