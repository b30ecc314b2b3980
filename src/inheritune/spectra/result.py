"""What an analysis says: the rank and mass of every head, and the quantities of the paper that follow from them.

Source: Sanyal et al., arXiv 2404.08634, section 2, appendices C and G.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from inheritune.errors import InherituneError, PlanError
from inheritune.records.analysis import Mask

Values = NDArray[np.float64]

COLLAPSED_RANK = 1.5
"""A head is collapsed when its Rank(h, l) is below this.

The paper says "close to 1". k* is a whole number of at least 1, so a mean below 1.5 means that k* = 1 on more than
half of the sequences."""


@dataclass(frozen=True, eq=False)
class Spectra:
    """Rank and mass of every head under one mask.

    Attributes:
        rank: (layers, heads) float64, Rank(h, l): the mean over the sequences of k*(tau) (eq. 3). A layer with fewer
            heads than the widest has NaN in the places it lacks.
        mass: (layers, heads) float64, the mean over the sequences of m*(eta) (appendix C).
        tau: share of the squared singular values that k* must reach.
        eta: share of the squared column norms that m* must reach.
        mask: `causal` (what the model computes) or `full` (the same logits, softmax without the mask).
        sequences: number of sequences N.
        length: tokens in each, T.
        layers_index: for each row of `rank`, the index of its block in the model: 0, 1, 2, ... unless some blocks have
            no attention.
        ranks: Rank(h, l) for each tau that was asked for, `tau` among them (Fig. 10 of the paper compares several).
        rank_error: (layers, heads) float64, standard error of Rank over the sequences: sample standard deviation of k*
            divided by sqrt(N); NaN for one sequence.
        entropy: (layers, heads) float64, Shannon entropy of a row in nats, mean over rows and sequences: 0 where each
            token attends to one other, ln T where it attends to all alike. What an attention sink without a token
            (gpt-oss) takes is no part of the row.
        stable_rank: (layers, heads) float64, mean over the sequences of the squared Frobenius norm over the squared
            spectral norm: the rank without a threshold, 1 or more.
        sink_column: (layers, heads) int64, the column that the head collapses to on most sequences, the leftmost of
            several; -1 where a layer has no such head.
        sink_epsilon: (layers, heads) float64, mean over the sequences of the least eps for which the matrix is
            eps-sink-collapsed to some column (appendix H).
        blocks: what does not depend on the mask: the importance of whole blocks and their MLPs.
        gradients: the gradient probe, where one was asked for.
    """

    rank: Values
    mass: Values
    tau: float
    eta: float
    mask: Mask
    sequences: int
    length: int
    layers_index: tuple[int, ...]
    ranks: dict[float, Values] = field(default_factory=dict)
    rank_error: Values | None = None
    entropy: Values | None = None
    stable_rank: Values | None = None
    sink_column: NDArray[np.int64] | None = None
    sink_epsilon: Values | None = None
    blocks: BlockMeasures | None = None
    gradients: GradientProbe | None = None

    @property
    def parts(self) -> tuple[Spectra, ...]:
        """The spectra under each mask, here these alone, as `BothSpectra` has two."""
        return (self,)

    @property
    def causal(self) -> Spectra:
        """The spectra under the causal mask, as `BothSpectra` has them; InherituneError where these are not."""
        return self._under("causal")

    @property
    def full(self) -> Spectra:
        """The spectra without the mask, as `BothSpectra` has them; InherituneError where these are not."""
        return self._under("full")

    def _under(self, mask: Mask) -> Spectra:
        if mask != self.mask:
            raise InherituneError(f"no spectra under the {mask} mask, {self.mask} alone: pass mask='both' to analyze")
        return self

    def at(self, tau: float) -> Spectra:
        """Return the spectra with the rank at another tau of those that were asked for; its error is not known.

        Raises:
            InherituneError: this tau was not asked for.
        """
        if tau not in self.ranks:
            known = ", ".join(f"{each:g}" for each in self.ranks) or f"{self.tau:g}"
            raise InherituneError(f"tau {tau:g} was not analysed: expected one of {known}")
        return self if tau == self.tau else replace(self, rank=self.ranks[tau], tau=tau, rank_error=None)

    @property
    def max_rank(self) -> Values:
        """MaxRank(l), (layers,): the largest Rank(h, l) of the layer's heads (eq. 3)."""
        return np.nanmax(self.rank, axis=1)

    @property
    def avg_mass(self) -> Values:
        """AvgMass(l), (layers,): the mean over the layer's heads of the mean m* (appendix C)."""
        return np.nanmean(self.mass, axis=1)

    @property
    def lazy_layers(self) -> list[int]:
        """The lazy layers (Definition G.1): indices in the model of the layers with MaxRank(l) = 1.

        Equality is meant and is exact: a mean of whole numbers of at least 1 is 1 only when k* = 1 for every head on
        every sequence. Definition G.1 rounds down for groups alone: see `is_lazy_group`, which for a group of one layer
        asks for a MaxRank below 2.
        """
        return [index for index, rank in zip(self.layers_index, self.max_rank, strict=True) if rank == 1.0]

    @property
    def collapsed_heads(self) -> NDArray[np.bool_]:
        """(layers, heads): whether the head is collapsed, Rank(h, l) < 1.5 (`COLLAPSED_RANK` says why)."""
        return np.less(self.rank, COLLAPSED_RANK)

    @property
    def collapsed_share(self) -> Values:
        """(layers,): the share of each layer's heads that are collapsed; see `collapsed_total` for the whole model."""
        return self.collapsed_heads.sum(axis=1) / (~np.isnan(self.rank)).sum(axis=1)

    @property
    def collapsed_total(self) -> float:
        """The share of all heads that are collapsed."""
        return float(self.collapsed_heads.sum() / (~np.isnan(self.rank)).sum())

    def avg_rank(self, layers: Iterable[int]) -> float:
        """Return AvgRank of a group: the mean of MaxRank(l) over its layers (eq. 4).

        Args:
            layers: indices of the layers in the model, 0-based.

        Raises:
            PlanError: the group is empty or names a layer that was not analysed.
        """
        rank = dict(zip(self.layers_index, self.max_rank.tolist(), strict=True))
        group = list(layers)
        unknown = [layer for layer in group if layer not in rank]
        if not group or unknown:
            wrong = f"layer {unknown[0]} was not analysed" if unknown else "the group of layers is empty"
            raise PlanError(f"{wrong}: expected some of {', '.join(map(str, self.layers_index))}")
        return float(np.mean([rank[layer] for layer in group]))

    def is_lazy_group(self, layers: Iterable[int]) -> bool:
        """Return whether a group of layers is lazy: floor(AvgRank) = 1 (Definition G.1)."""
        return int(self.avg_rank(layers)) == 1


@dataclass(frozen=True, eq=False)
class BothSpectra:
    """The spectra of the same heads under both masks.

    Attributes:
        causal: what the model computes.
        full: the softmax of the same logits without the mask.
    """

    causal: Spectra
    full: Spectra

    @property
    def parts(self) -> tuple[Spectra, ...]:
        """The spectra under each mask, what the model computes first."""
        return (self.causal, self.full)

    @property
    def head_classes(self) -> NDArray[np.str_]:
        """(layers, heads): `sink`, `uniform` or `potent`, and an empty string where a layer has no such head.

        Under the causal mask rank 1 means that every row attends to one column (`sink`). Without it, rank 1 also comes
        from near-uniform averaging: a head collapsed there and not under the causal mask is `uniform`. A head collapsed
        under neither is `potent`.
        """
        causal, full = self.causal, self.full
        potent = np.where(full.collapsed_heads, "uniform", "potent")
        return np.where(np.isnan(causal.rank), "", np.where(causal.collapsed_heads, "sink", potent))


@dataclass(frozen=True, eq=False)
class BlockMeasures:
    """What an analysis says of every block of the model, also of those without attention; no mask has a part in it.

    Attributes:
        influence: (L,) float64, Block Influence: 1 - the mean over tokens and sequences of the cosine of a block's
            input and its output; 0 for a block that only rescales, NaN where the hidden state is not (n, T, D).
        angular_distance: (L, L + 1) float64; [l, n] is the mean over sequences of arccos(cos(x_l, x_(l + n))) / pi for
            the last token, x_l the input of block l and x_L the last block's output, n from 1 to L - l; 0 for the same
            direction, 0.5 for a right angle. All other places are NaN.
        mlp_rank: (L,) float64, mean over sequences of the least k for which the k largest squared singular values of
            the (T, D) matrix of the MLP's outputs reach tau of the sum of all; NaN where a block has no MLP of its own.
        mlp_rank_error: (L,) float64, standard error of `mlp_rank`: sample standard deviation / sqrt(N); NaN for N = 1.
        mlp_mass: (L,) float64, mean over sequences of the least number of tokens whose MLP outputs, largest first, hold
            eta of the squared Frobenius norm of that matrix; NaN as above.
    """

    influence: Values
    angular_distance: Values
    mlp_rank: Values
    mlp_rank_error: Values
    mlp_mass: Values

    @property
    def depth(self) -> int:
        """The number of blocks L."""
        return len(self.influence)

    def least_influential(self, count: int) -> list[int]:
        """Return the `count` blocks that ShortGPT would cut, in the order of the model; the earlier of equals."""
        return sorted(np.argsort(self.influence, kind="stable")[:count].tolist())

    def nearest_span(self, count: int) -> list[int]:
        """Return the `count` contiguous blocks that Gromov et al. would cut: the least angular distance across them."""
        start = int(np.nanargmin(self.angular_distance[: self.depth - count + 1, count]))
        return list(range(start, start + count))


@dataclass(frozen=True, eq=False)
class GradientProbe:
    """The gradient norms of every head's query and key weights, and the most that Theorem H.1 (iii) allows them.

    L is the mean next-token cross-entropy over all sequences, in nats a token. Tables are (layers, heads) float64, NaN
    in the places of heads that a layer does not have; their rows are the layers with attention.

    Attributes:
        query: ||dL/dW_Q||_F of each head: of the weights that make the head's queries, through its queries alone. Where
            several matrices follow each other (multi-head latent attention, adapters) the norm is that of all of them.
        key: the same for the keys, through the head's own logits alone. Heads that share a key head (grouped queries)
            each have a part; the gradient of the shared weights is the sum of these parts as matrices.
        query_bound: the theorem's bound for `query`, summed over the sequences; NaN where it does not speak of the
            family: queries that are normalised or that come out of several matrices.
        key_bound: the same for `key`.
        layers_index: for each row, the index of its block in the model.
        sequences: number of sequences N.
        length: tokens in each, T.
        loss: L.
    """

    query: Values
    key: Values
    query_bound: Values
    key_bound: Values
    layers_index: tuple[int, ...]
    sequences: int
    length: int
    loss: float
