"""How much a head's query and key weights still learn, beside what its collapse allows them: "collapse is sticky".

Source: Sanyal et al., arXiv 2404.08634, appendix H. When every row of a head's attention A puts at least 1 - eps on
one column, the Jacobian of each row's softmax, diag(a) - a a^T, is positive semi-definite with trace
1 - ||a||^2 <= 1 - (1 - eps)^2 <= 2 eps, so its norm is at most 2 eps. The gradient of the logits is therefore at most
2 eps ||dL/dA||_F, and from it, through logits = s Q K^T and Q = X W_Q, Theorem H.1 (iii):

    ||dL/dW_Q||_F <= 2 eps s ||X||_2 ||K||_2 ||dL/dA||_F        ||dL/dW_K||_F <= 2 eps s ||X||_2 ||Q||_2 ||dL/dA||_F

with s = 1 / sqrt(d) in the paper. A soft-cap only shrinks gradients, a share that goes to an attention sink counts in
eps, and a rotation keeps lengths, so the bound stands for them too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from inheritune.decoder import Decoder
from inheritune.decoder.streaming import load_decoder
from inheritune.errors import ModelError
from inheritune.spectra.checks import check_fit, check_tokens, check_weights
from inheritune.spectra.measure.rank import sink_collapse
from inheritune.spectra.result import GradientProbe, Values
from inheritune.spectra.watch.recording import SIDES, Call, Side, as_float64, reached, run_with_gradients


class LayerGradients(NamedTuple):
    """The gradient norms of each layer's query and key weights, all heads together.

    Attributes:
        query: (layers,) float64, ||dL/dW_Q||_F of the layer.
        key: (layers,) float64, ||dL/dW_K||_F of the layer.
        layers_index: for each value, the index of its block in the model.
        loss: L, the mean next-token cross-entropy in nats a token.
    """

    query: Values
    key: Values
    layers_index: tuple[int, ...]
    loss: float


def gradient_probe(model: PreTrainedModel | Decoder | str | Path, tokens: Any) -> GradientProbe:
    """Measure, for every head, the gradient of its query and key weights and the bound that its collapse sets.

    The gradients of the sequences are added as matrices, so that they are those of the mean loss. They are kept on the
    CPU, 2 x heads x d_model x d numbers a layer, the size of W_Q and of W_K without sharing. Each forward pass keeps
    what an eager training step keeps, T x T probabilities of all heads included: a few sequences (8, say) of T = 100
    tell enough. The model is not changed, and needs no weights that require gradients.

    Args:
        model: a model, a folder in Hugging Face format, or a hub id.
        tokens: (N, T) integer token ids (NumPy, PyTorch or nested lists), 2 <= T <= the model's context.

    Raises:
        DataError: the tokens are not (N, T) integers that the model can read.
        ModelError: no such model, damaged weights, or attention that cannot be followed: by name and reason.
    """
    sequences = check_tokens(tokens)
    decoder = load_decoder(model, stream=False)
    check_fit(decoder, sequences)
    check_weights(decoder)
    totals = _HeadTotals()
    loss = run_with_gradients(decoder, sequences, totals.add)
    squares = _sum_squares(totals.sums)
    norms = {name: squares.get(name, math.nan) ** 0.5 for name in totals.bounds}  # no matrix may make a head's keys
    rows = sorted({layer for _, layer, _ in totals.bounds})
    heads = 1 + max(head for *_, head in totals.bounds)

    def table(values: dict[tuple[Side, int, int], float], side: Side) -> Values:  # (layers, heads)
        return np.array([[values.get((side, layer, head), math.nan) for head in range(heads)] for layer in rows])

    (query, key), (most_query, most_key) = ([table(v, side) for side in SIDES] for v in (norms, totals.bounds))
    return GradientProbe(query, key, most_query, most_key, tuple(rows), len(sequences), sequences.shape[1], loss)


def layer_gradients(decoder: Decoder, tokens: Tensor) -> LayerGradients:
    """Measure the gradient of each layer's query and key weights: one forward and one backward pass.

    The weights are as `GradientProbe` defines them, all heads of a layer together. The tokens are (N, T) int64, valid
    for the model, T >= 2; the model is not changed.

    Raises:
        ModelError: the model's attention cannot be followed.
    """
    sums: dict[tuple[Side, int, int], Tensor] = {}

    def add(call: Call) -> None:
        for side in SIDES:
            for source, part in call.pull(call.tensors[side], call.gradients[side]):
                if source.is_product:
                    name = (side, call.layer, source.number)
                    sums[name] = source.weight_gradient(part) + sums.get(name, 0)

    loss = run_with_gradients(decoder, tokens, add)
    squares = _sum_squares(sums)
    rows = sorted({layer for _, layer in squares})
    query, key = (np.sqrt([squares.get((side, layer), math.nan) for layer in rows]) for side in SIDES)
    return LayerGradients(query, key, tuple(rows), loss)


@dataclass
class _HeadTotals:
    """The sums over the sequences, filled in chunk by chunk.

    Attributes:
        ways: for each (side, layer, head), how its queries or keys come from weights.
        sums: for each (side, layer, head, number of the source), the gradient of its weights, on the CPU.
        bounds: for each (side, layer, head), the theorem's bound.
    """

    ways: dict[tuple[Side, int, int], _Way] = field(default_factory=dict)
    sums: dict[tuple[Side, int, int, int], Tensor] = field(default_factory=dict)
    bounds: dict[tuple[Side, int, int], float] = field(default_factory=dict)

    def add(self, call: Call) -> None:
        """Add what one layer's attention says in one chunk.

        The bound is 2 eps s ||dL/dA||_F times ||K||_2 or ||Q||_2, (n, H), times the way to the weights.
        """
        limit = 2 * _epsilon(call.tensors["probabilities"]) * abs(call.scaling)
        limit = limit * as_float64(call.gradients["probabilities"]).norm(dim=(-2, -1))
        for side, other in zip(SIDES, reversed(SIDES), strict=True):
            limits = limit * torch.linalg.matrix_norm(as_float64(call.tensors[other]), ord=2)
            for head in range(call.heads):
                self._add_head(side, head, call, limits[:, head])

    def _add_head(self, side: Side, head: int, call: Call, limits: Tensor) -> None:
        """Add what one head's queries or keys say; `limits` (n,) are the bound without the way to the weights."""
        name = (side, call.layer, call.head + head)
        vectors = call.tensors[side][:, head]
        if name not in self.ways:
            self.ways[name] = _Way.find(call, vectors)
            if side == "query" and not self.ways[name].columns:
                raise ModelError(
                    f"cannot probe the gradients of {type(call.module).__name__} in layer {call.layer}: "
                    "no matrix in it makes its queries"
                )
        way = self.ways[name]
        for source, part in call.pull(vectors, call.gradients[side][:, head]):
            if source.number in way.columns:
                gradient = source.weight_gradient(part, way.columns[source.number]).cpu()
                key = (*name, source.number)
                self.sums[key] = gradient + self.sums.get(key, 0)
        bound = math.nan
        if way.factor > 0:
            bound = way.factor * float((limits * call.input_norm(next(iter(way.columns)))).sum())
        self.bounds[name] = self.bounds.get(name, 0.0) + bound


@dataclass(frozen=True)
class _Way:
    """How the queries (or keys) of one head come from weights.

    Attributes:
        columns: for each source that is a product with a matrix, the outputs that reach the head.
        factor: what the way from the matrix's outputs to the logits multiplies lengths by: 1 where nothing
            but a rotation is between them, the factor itself where queries are scaled; NaN where lengths are changed in
            any other way (a norm), or several matrices follow each other.
    """

    columns: dict[int, Tensor]
    factor: float

    @classmethod
    def find(cls, call: Call, vectors: Tensor) -> _Way:
        """Follow a random direction (n, T, d) from the head's `vectors` back to the weights.

        The gradient of the loss would not do: it is zero for a fully collapsed head.
        """
        direction = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(0)).to(vectors)
        pulled = call.pull(vectors, direction)
        columns = {source.number: reached(part).nonzero().flatten() for source, part in pulled if source.is_product}
        if len(pulled) != 1 or len(columns) != 1:
            return cls(columns, math.nan)
        lengths = as_float64(pulled[0][1]).reshape(*vectors.shape[:2], -1).norm(dim=-1)
        ratios = lengths / as_float64(direction).norm(dim=-1)
        same = ratios.amax() - ratios.amin() <= torch.finfo(vectors.dtype).eps ** 0.5 * ratios.amax()
        return cls(columns, float(ratios.amax()) if same else math.nan)


def _epsilon(probabilities: Tensor) -> Tensor:
    """Return the eps of appendix H of each matrix, (n, H), to the last bit.

    1 - a_j is 0 in float32 once the others hold less than 6e-8; their own sum still tells.
    """
    column, epsilon = sink_collapse(probabilities.detach())
    index = column[..., None, None].expand(*probabilities.shape[:-1], 1)
    others = as_float64(probabilities).scatter(-1, index, 0.0).sum(dim=-1).amax(dim=-1)
    return epsilon.maximum(others)


def _sum_squares(sums: dict[Any, Tensor]) -> dict[Any, float]:
    """Return the sum of the squared entries of all tensors, of any shape, whose names differ in the last place only."""
    squares: dict[Any, float] = {}
    for name, total in sums.items():
        squares[name[:-1]] = squares.get(name[:-1], 0.0) + float(total.double().square().sum())
    return squares
