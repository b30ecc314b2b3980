"""Everything that is measured of one attention head: numbers for each matrix, and their means over the sequences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from inheritune.records.analysis import Mask
from inheritune.spectra.measure.pieces import Piece, cached_size
from inheritune.spectra.measure.rank import columns_of, piece_mass, piece_rank, piece_stable_rank, sink_collapse
from inheritune.spectra.result import Values

Reduce = Callable[[Values], Any]


class HeadMeasures(NamedTuple):
    """Numbers of the attention matrices of some sequences and heads; (n,) for n sequences of one head and so on.

    Attributes:
        rank: (..., taus) k* (paper, eq. 2).
        mass: (...,) m* (paper, appendix C).
        entropy: (...,) mean over the rows of the Shannon entropy, nats.
        stable_rank: (...,) ||A||_F^2 / ||A||_2^2.
        sink_column: (...,) the column of appendix H.
        sink_epsilon: (...,) its eps.
    """

    rank: Values
    mass: Values
    entropy: Values
    stable_rank: Values
    sink_column: Values
    sink_epsilon: Values


class HeadRanks(NamedTuple):
    """The ranks alone: `rank` (..., taus) as in `HeadMeasures`."""

    rank: Values


def measure_heads(matrices: Tensor, taus: Sequence[float], eta: float) -> HeadMeasures:
    """Measure (sequences, heads, T, T) attention matrices, in float32 where it decides and float64 where it does not.

    Raises:
        ValueError: a matrix holds NaN or infinity.
    """
    piece, shape = matrices.reshape(-1, *matrices.shape[-2:]), matrices.shape[:2]
    columns = columns_of(piece)
    rank, top = piece_rank(piece, columns, taus)
    mass, entropy, stable = piece_mass(piece, columns, eta), row_entropy(piece), piece_stable_rank(piece, top)
    numbers = (rank, mass, entropy, stable, *sink_collapse(piece))
    return HeadMeasures(*(each.reshape(*shape, *each.shape[1:]).double().cpu().numpy() for each in numbers))


def row_entropy(matrices: Tensor) -> Tensor:
    """Return the mean over the rows of the Shannon entropy of each row, (...,) float32, nats, of (..., T, T) matrices.

    -sum_j a_ij ln a_ij over the keys j, with 0 ln 0 = 0 (Shannon 1948).
    """
    rows = matrices.reshape(-1, matrices.shape[-1])
    # ln of what is below 1e-30 is taken there: p ln p is then nothing beside float32's rounding.
    parts = (part.float() for part in rows.split(cached_size(rows)))
    entropies = torch.cat([torch.linalg.vecdot(part, part.clamp(min=1e-30).log_()) for part in parts]).neg_()
    return entropies.reshape(matrices.shape[:-1]).mean(dim=-1)


class HeadTable:
    """The measures of every head and of N `sequences`, filled in piece by piece, also by several threads at once."""

    def __init__(self, sequences: int, taus: Sequence[float]) -> None:
        self.sequences, self.taus = sequences, tuple(taus)
        self._values: dict[tuple[Mask, int, int], HeadMeasures | HeadRanks] = {}

    def put(self, piece: Piece, measured: HeadMeasures | HeadRanks) -> None:
        """Store what was measured on a piece: arrays (sequences, heads, ...)."""
        rows = slice(piece.sequence, piece.sequence + len(measured.rank))
        for head in range(measured.rank.shape[1]):
            key = (piece.mask, piece.layer, piece.head + head)
            empty = (np.full((self.sequences, *each.shape[2:]), np.nan) for each in measured)
            stored = self._values.setdefault(key, type(measured)(*empty))
            for column, numbers in zip(stored, measured, strict=True):
                column[rows] = numbers[:, head]

    def layers(self) -> tuple[int, ...]:
        """Return the layers that have attention, in order."""
        return tuple(sorted({layer for _, layer, _ in self._values}))

    def means(self, mask: Mask) -> HeadMeasures:
        """Return the mean over the sequences of each measure: (layers, heads) and, of the rank, (layers, heads, taus).

        The sink's column is the most frequent one, the leftmost of several; -1 where a layer has no such head, where
        everything else is NaN.
        """
        means = HeadMeasures(*(self._over(mask, name) for name in HeadMeasures._fields))
        columns = np.nan_to_num(self._over(mask, "sink_column", _most_frequent), nan=-1)
        return means._replace(sink_column=columns)

    def mean_rank(self, mask: Mask) -> Values:
        """Return the mean k* over the sequences (paper, eq. 2), (layers, heads, taus); NaN where there is no head."""
        return self._over(mask, "rank")

    def rank_errors(self, mask: Mask) -> Values:
        """Return the standard error of the mean k*, (layers, heads, taus); NaN for one sequence."""
        if self.sequences < 2:
            return self.mean_rank(mask) * np.nan
        return self._over(mask, "rank", lambda values: values.std(axis=0, ddof=1) / np.sqrt(self.sequences))

    def _over(self, mask: Mask, name: str, reduce: Reduce = lambda values: values.mean(axis=0)) -> Values:
        """Return a measure of every head under one mask, (layers, heads, ...): its mean over the sequences, say."""
        reduced = {key[1:]: reduce(getattr(value, name)) for key, value in self._values.items() if key[0] == mask}
        layers, heads = self.layers(), 1 + max(head for _, head in reduced)
        shape = np.shape(next(iter(reduced.values())))
        table = np.full((len(layers), heads, *shape), np.nan)
        for (layer, head), value in reduced.items():
            table[layers.index(layer), head] = value
        return table


def _most_frequent(columns: Values) -> float:
    """Return the most frequent of (N,) columns, the leftmost of several."""
    values, counts = np.unique(columns, return_counts=True)
    return float(values[counts.argmax()])
