"""How much of an attention matrix a few directions or a few columns hold: pure arithmetic, no model.

Every function takes a batch of attention matrices of shape (..., T, T), any float dtype, on any device, and works
in float64 on bounded pieces of the batch. Source: Sanyal et al., arXiv 2404.08634, section 2 and appendices C and H.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from numbers import Real
from typing import TYPE_CHECKING, NamedTuple

from inheritune.errors import InherituneError

if TYPE_CHECKING:
    from torch import Tensor

PIECE_BYTES = 16 * 2**20
"""Size of the float64 copy of the matrices that one worker handles at a time."""

SLACK = 1e-12
"""Share by which a cumulative sum may miss its threshold and still count as reaching it.

An exact tie, such as 90 of the 100 equal singular values of an identity at tau = 0.9, is reached in exact arithmetic;
float64 rounding (about T * 1e-16) must not decide it."""


class SinkCollapse(NamedTuple):
    """The column a matrix collapses to, and by how much it misses full collapse (paper, appendix H).

    Attributes:
        column: (...,) int64, the column j that the least attentive row attends to most.
        epsilon: (...,) float64, the least eps such that every row puts at least 1 - eps on `column`.
    """

    column: Tensor
    epsilon: Tensor


def squared_singular_values(matrices: Tensor) -> Tensor:
    """Return the squared singular values of each matrix, largest first, (..., T) float64.

    They are the eigenvalues of the float64 Gram matrix A^T A: the same shares of the squared Frobenius norm as a
    float64 SVD gives, for about half the work. An eigenvalue below zero by rounding is zero.
    """
    return _in_pieces(_spectrum, matrices)


def approximate_rank(matrices: Tensor, tau: float = 0.9) -> Tensor:
    """Return the approximate rank k*(tau) of each matrix, (...,) int64 (paper, section 2, eq. 2).

    k* is the least k for which the k largest squared singular values reach `tau` of the sum of all. Most collapsed
    heads are proved to have k* = 1 by a lower bound on the largest singular value; the spectrum decides the others.

    Raises:
        InherituneError: `tau` is not between 0 and 1.
        ValueError: a matrix holds NaN or infinity.
    """
    check_fraction("tau", tau)
    return _in_pieces(lambda piece: _rank(piece, tau), matrices)


def column_mass(matrices: Tensor, eta: float = 0.9) -> Tensor:
    """Return the column mass m*(eta) of each matrix, (...,) int64 (paper, appendix C).

    m* is the least number of columns, largest first, whose squared norms reach `eta` of the squared Frobenius norm.

    Raises:
        InherituneError: `eta` is not between 0 and 1.
        ValueError: a matrix holds NaN or infinity.
    """
    check_fraction("eta", eta)

    def mass(piece: Tensor) -> Tensor:
        norms = piece.double().square().sum(dim=-2)
        return _count_to_reach(norms.sort(dim=-1, descending=True).values, eta)

    return _in_pieces(mass, matrices)


def sink_collapse(matrices: Tensor) -> SinkCollapse:
    """Return the sink column of each matrix and its eps (paper, appendix H).

    By Theorem H.1 (i) the second singular value is at most `epsilon * sqrt(2 T)`. Under a causal mask the first row
    attends to the first column alone, so every other column has eps = 1.
    """
    least = matrices.amin(dim=-2).double()
    share, column = least.max(dim=-1)
    return SinkCollapse(column, 1.0 - share)


def check_fraction(name: str, value: float) -> None:
    """Refuse a threshold that is not a number between 0 and 1.

    Raises:
        InherituneError: it is not.
    """
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not 0 < value < 1:
        raise InherituneError(f"{name} is {value!r}: expected a number between 0 and 1, both excluded, such as 0.9")


def _rank(piece: Tensor, tau: float) -> Tensor:
    """Return k*(tau) of a (n, T, T) batch: 1 where that is proved cheaply, else from the spectrum."""
    import torch

    rank = torch.ones(piece.shape[0], dtype=torch.int64, device=piece.device)
    unproved = ~_is_surely_rank_one(piece, tau)
    if unproved.any():
        rank[unproved] = _count_to_reach(_spectrum(piece[unproved]), tau)
    return rank


def _is_surely_rank_one(piece: Tensor, tau: float) -> Tensor:
    """Return, for each matrix of a (n, T, T) batch, whether k*(tau) = 1 is proved; False says nothing.

    ||A v||^2 / ||v||^2 is a lower bound of the largest squared singular value for any v. The column sums v = A^T 1
    are its right singular vector when all rows of A are equal, the only way a row-stochastic A can have rank 1.
    The entries are not negative, so a float32 sum of T terms is right to T * 2^-24 of itself; the margin covers it.
    """
    import torch

    piece = piece.float()
    total = piece.square().sum(dim=(-2, -1))
    direction = piece.sum(dim=-2)
    image = torch.einsum("nij,nj->ni", piece, direction)
    bound = image.square().sum(dim=-1) / direction.square().sum(dim=-1)
    margin = 1.0 + 16 * piece.shape[-1] * torch.finfo(torch.float32).eps
    return bound > tau * margin * total


def _spectrum(piece: Tensor) -> Tensor:
    import torch

    piece = piece.double()
    return torch.linalg.eigvalsh(piece.mT @ piece).flip(-1).clamp_(min=0)


def _count_to_reach(parts: Tensor, share: float) -> Tensor:
    """Return how many of the leading `parts` (..., T), added up, reach `share` of their sum."""
    cumulative = parts.cumsum(dim=-1)
    threshold = share * (1 - SLACK) * cumulative[..., -1:]
    return 1 + (cumulative < threshold).sum(dim=-1).clamp(max=parts.shape[-1] - 1)


def _in_pieces(function: Callable[[Tensor], Tensor], matrices: Tensor) -> Tensor:
    """Apply `function` to (n, T, T) pieces of a (..., T, T) batch and put the (n, ...) results together."""
    import torch

    flat = matrices.reshape(-1, *matrices.shape[-2:])
    if not flat.sum(dtype=torch.float32).isfinite():
        raise ValueError("an attention matrix holds NaN or infinity")
    workers = 1 if flat.device.type != "cpu" else torch.get_num_threads()
    bounded = max(1, PIECE_BYTES // (8 * flat[0].numel())) if len(flat) else 1
    pieces = flat.split(max(1, min(bounded, -(-len(flat) // workers))))
    if workers == 1 or len(pieces) == 1:
        results = [function(piece) for piece in pieces]
    else:
        results = _in_threads(function, pieces, workers)
    result = torch.cat(results)
    return result.reshape((*matrices.shape[:-2], *result.shape[1:]))


def _in_threads(function: Callable[[Tensor], Tensor], pieces: tuple[Tensor, ...], workers: int) -> list[Tensor]:
    """Apply `function` to every piece in `workers` threads of one core each.

    Small LAPACK problems do not use two cores by themselves, and lose several times their own run time to threads that
    wait for each other; a thread of its own per core does neither. The number of threads is set in the worker only,
    and set again here because PyTorch also remembers the last number as the default of threads still to be made.
    """
    import torch

    def alone(piece: Tensor) -> Tensor:
        torch.set_num_threads(1)
        return function(piece)

    try:
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(alone, pieces))
    finally:
        torch.set_num_threads(workers)
