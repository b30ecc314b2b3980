"""How much of an attention matrix a few directions or a few columns hold: pure arithmetic, no model.

Every function takes a batch of matrices, attention's of shape (..., T, T), any float dtype, on any device; the counts
work for any (..., R, C) and signs, with C columns, and are fastest where C is not above R. The counts k*
and m* are those of a float64 computation on every matrix: what float32 leaves open, because a cumulative share lies
within its rounding of the threshold, is computed in float64. Source: Sanyal et al., arXiv 2404.08634, section 2 and
appendices C and H.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from inheritune.errors import InherituneError
from inheritune.spectra.measure.certificate import certify, rounding
from inheritune.spectra.measure.pieces import cached_size, in_pieces

SLACK = 1e-12
"""Share by which a cumulative sum may miss its threshold and still count as reaching it.

An exact tie, such as 90 of the 100 equal singular values of an identity at tau = 0.9, is reached in exact arithmetic;
float64 rounding (about T * 1e-16) must not decide it."""

DOUBLE_BYTES = 32 * 2**20
"""Size of the float64 copies that one worker makes at a time, or of one matrix where that is more."""

BAND_BYTES = 2**18
"""Size of the band of rows of one matrix that is passed over at a time, so that it stays in the cache."""

LARGE = 1024
"""Side above which float64 eigenvalues are found one matrix at a time and in place."""

POWER_STEPS = 4
"""Products with A^T A for the largest singular value of a matrix of which it holds nine tenths: each divides the error
of its square by 80 or more."""


class SinkCollapse(NamedTuple):
    """The column a matrix collapses to, and by how much it misses full collapse (paper, appendix H).

    Attributes:
        column: (...,) int64, the column j that the least attentive row attends to most.
        epsilon: (...,) float64, the least eps such that every row puts at least 1 - eps on `column`.
    """

    column: Tensor
    epsilon: Tensor


class RankAndMass(NamedTuple):
    """Both counts of each matrix.

    Attributes:
        rank: (...,) int64, k*(tau), or (taus, ...) for several tau.
        mass: (...,) int64, m*(eta).
    """

    rank: Tensor
    mass: Tensor


def squared_singular_values(matrices: Tensor) -> Tensor:
    """Return the squared singular values of each matrix, largest first, (..., T) float64.

    They are the eigenvalues of the float64 Gram matrix A^T A: the same shares of the squared Frobenius norm as a
    float64 SVD gives, for about half the work. An eigenvalue below zero by rounding is zero.

    Raises:
        ValueError: a matrix holds NaN or infinity.
    """
    return in_pieces(lambda piece: (_spectrum(piece),), matrices)[0]


def approximate_rank(matrices: Tensor, tau: float | Sequence[float] = 0.9) -> Tensor:
    """Return the approximate rank k*(tau) of (..., T, T) matrices, int64 (paper, section 2, eq. 2).

    k* is the least k for which the k largest squared singular values reach `tau` of the sum of all. It is (...,) for
    one tau, (taus, ...) for several.

    Raises:
        InherituneError: a tau is not between 0 and 1.
        ValueError: a matrix holds NaN or infinity.
    """
    taus = check_taus(tau)
    (ranks,) = in_pieces(lambda piece: (piece_rank(piece, columns_of(piece), taus)[0],), matrices)
    return ranks[..., 0] if isinstance(tau, Real) else ranks.movedim(-1, 0)


def column_mass(matrices: Tensor, eta: float = 0.9) -> Tensor:
    """Return the column mass m*(eta) of each matrix, (...,) int64 (paper, appendix C).

    m* is the least number of columns, largest first, whose squared norms reach `eta` of the squared Frobenius norm.

    Raises:
        InherituneError: `eta` is not between 0 and 1.
        ValueError: a matrix holds NaN or infinity.
    """
    check_fraction("eta", eta)
    return in_pieces(lambda piece: (piece_mass(piece, columns_of(piece), eta),), matrices)[0]


def rank_and_mass(matrices: Tensor, tau: float | Sequence[float] = 0.9, eta: float = 0.9) -> RankAndMass:
    """Return `approximate_rank` and `column_mass` of (..., T, T) matrices, with one pass over the columns for both.

    Raises:
        InherituneError: a share is not between 0 and 1.
        ValueError: a matrix holds NaN or infinity.
    """
    taus = check_taus(tau)
    check_fraction("eta", eta)

    def both(piece: Tensor) -> tuple[Tensor, Tensor]:
        columns = columns_of(piece)
        return piece_rank(piece, columns, taus)[0], piece_mass(piece, columns, eta)

    ranks, mass = in_pieces(both, matrices)
    return RankAndMass(ranks[..., 0] if isinstance(tau, Real) else ranks.movedim(-1, 0), mass)


def stable_rank(matrices: Tensor) -> Tensor:
    """Return the stable rank of each matrix, ||A||_F^2 / ||A||_2^2, (...,) float64, right to about 1e-5 of itself.

    It is the rank without a threshold, at least 1 and at most the rank (Rudelson and Vershynin 2007).

    Raises:
        ValueError: a matrix holds NaN or infinity.
    """

    def stable(piece: Tensor) -> tuple[Tensor]:
        columns = columns_of(piece)
        return (piece_stable_rank(piece, piece_rank(piece, columns, (0.9,))[1]),)

    return in_pieces(stable, matrices)[0]


def sink_collapse(matrices: Tensor) -> SinkCollapse:
    """Return the sink column of each matrix and its eps (paper, appendix H).

    By Theorem H.1 (i) the second singular value is at most `epsilon * sqrt(2 T)`. Under a causal mask the first row
    attends to the first column alone, so every other column has eps = 1.
    """
    least = matrices.amin(dim=-2).double()
    share, column = least.max(dim=-1)
    return SinkCollapse(column, 1.0 - share)


def check_fraction(name: str, value: float) -> None:
    """Refuse, by an InherituneError, a threshold that is not a number between 0 and 1."""
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 < value < 1:
        raise InherituneError(f"{name} is {value!r}: expected a number between 0 and 1, both excluded, such as 0.9")


def check_taus(tau: float | Sequence[float]) -> tuple[float, ...]:
    """Return one or several tau as a tuple of different numbers, in the order given.

    Raises:
        InherituneError: there is none, or one is not between 0 and 1.
    """
    several = isinstance(tau, Sequence) and not isinstance(tau, str)
    taus: tuple[Any, ...] = tuple(tau) if several else (tau,)  # type: ignore[arg-type]
    if not taus:
        raise InherituneError("tau is empty: expected a number between 0 and 1, such as 0.9, or several")
    for each in taus:
        check_fraction("tau", each)
    return tuple(dict.fromkeys(map(float, taus)))


def piece_mass(piece: Tensor, columns: Columns, eta: float) -> Tensor:
    """Return m*(eta) (n,) of a (n, T, T) batch given its columns."""
    cumulative = columns.norms.sort(dim=-1, descending=True).values.double().cumsum(dim=-1)
    shares = cumulative / cumulative[:, -1:]
    mass = _count_to_reach(shares, eta)
    unsure = _is_near(shares, mass, eta, rounding(max(piece.shape[-2:])))
    for chosen in _few_at_a_time(unsure, max(piece.shape[-2:])):
        bands = piece[chosen].split(256, dim=-2) if len(chosen) < len(piece) else piece.split(256, dim=-2)
        norms = sum(_double(band).square_().sum(dim=-2) for band in bands).sort(dim=-1, descending=True).values
        mass[chosen] = _count_to_reach(norms.cumsum(dim=-1) / norms.sum(dim=-1, keepdim=True), eta).to(mass.device)
    return mass


def piece_rank(piece: Tensor, columns: Columns, taus: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Return k* (n, taus) of a (n, T, T) batch and the largest squared singular value's share of their sum (n,).

    From the cheapest proof to the dearest: a column or the column sums alone hold tau (k* = 1); a certificate on a
    small subspace; all eigenvalues of the float32 Gram matrix; those of the float64 matrix where float32 leaves k*
    open. The largest share is NaN where the first proof sufficed: it was not needed.
    """
    rank = torch.ones(len(piece), len(taus), dtype=torch.int64, device=piece.device)
    top = torch.full((len(piece),), torch.nan, dtype=torch.float32, device=piece.device)
    rest = (~_is_surely_rank_one(columns, piece.shape[-2], max(taus))).nonzero()[:, 0]
    if len(rest) == 0:
        return rank, top
    gram = _scaled_grams(piece, rest)
    rank[rest], top[rest] = certify(gram, taus)
    left = (rank[rest, 0] == 0).nonzero()[:, 0]
    if len(left):
        spectrum = _eigenvalues(gram if len(left) == len(gram) else gram[left])
        del gram
        rank[rest[left]] = _ranks_of_spectra(piece, rest[left], spectrum, taus)
        top[rest[left]] = spectrum[:, 0]
    return rank, top


def piece_stable_rank(piece: Tensor, top: Tensor) -> Tensor:
    """Return the stable rank (n,) float64 of a (n, T, T) batch, given `top` as `piece_rank` returns it.

    Where `top` is NaN the matrix is nearly of rank one, and a few power steps on A^T A find its largest singular value.
    """
    share = top.double() if top.device.type != "mps" else top
    near = share.isnan().nonzero()[:, 0]
    if len(near):
        matrices = piece[near].float()
        vector = matrices.sum(dim=-2).unsqueeze(-1)
        for _ in range(POWER_STEPS):
            vector = torch.bmm(matrices.mT, torch.bmm(matrices, vector))
            vector /= torch.linalg.vector_norm(vector, dim=-2, keepdim=True)
        image = torch.bmm(matrices, vector).square().sum(dim=(-2, -1))
        share[near] = (image / matrices.square().sum(dim=(-2, -1))).to(share.dtype)
    return 1.0 / share


class Columns(NamedTuple):
    """The columns of n matrices: their squared norms and their sums, each (n, T) float32."""

    norms: Tensor
    sums: Tensor


def columns_of(piece: Tensor) -> Columns:
    """Return the columns' norms and sums of a (n, T, T) batch, both while the matrices are in the cache.

    Raises:
        ValueError: a matrix holds NaN or infinity.
    """
    norms, sums = [], []
    rows = max(1, BAND_BYTES // (4 * piece.shape[-1]))
    for part in piece.split(cached_size(piece)):
        bands = [band.float() for band in part.split(rows, dim=-2)]
        norms.append(sum(band.square().sum(dim=-2) for band in bands))
        sums.append(sum(band.sum(dim=-2) for band in bands))
    columns = Columns(torch.cat(norms), torch.cat(sums))
    if not columns.norms.sum().isfinite():
        raise ValueError("an attention matrix holds NaN or infinity")
    return columns


def _is_surely_rank_one(columns: Columns, rows: int, tau: float) -> Tensor:
    """Return (n,) bool: whether the columns of a matrix of so many rows prove k*(tau) = 1; False says nothing.

    ||A v||^2 and ||A^T v||^2 are lower bounds of the largest squared singular value for any unit vector v. Two are had
    for nothing: the unit vector of the largest column, which proves a sink, and the even vector, which A^T takes to the
    column sums: it proves that all rows are nearly equal, as in an even average without a mask.
    """
    threshold = (tau + rounding(rows)) * columns.norms.sum(dim=-1)
    return (columns.norms.amax(dim=-1) >= threshold) | (columns.sums.square().sum(dim=-1) / rows >= threshold)


def _scaled_grams(piece: Tensor, chosen: Tensor) -> Tensor:
    """Return A^T A / ||A||_F^2 of the `chosen` (m,) of (n, T, T) matrices, float32, without a copy of all of them."""
    some, grams = len(chosen) < len(piece), []
    for part in (chosen if some else piece).split(cached_size(piece)):
        few = (piece[part] if some else part).float()
        gram = torch.bmm(few.mT, few)
        trace = gram.diagonal(dim1=-2, dim2=-1).sum(dim=-1)
        grams.append(gram.div_(trace.clamp(min=1e-30)[:, None, None]))
    return grams[0] if len(grams) == 1 else torch.cat(grams)


def _eigenvalues(gram: Tensor) -> Tensor:
    """Return the eigenvalues of (n, T, T) float32 Gram matrices, (n, T), largest first."""
    try:
        return torch.linalg.eigvalsh(gram).flip(-1)
    except torch.linalg.LinAlgError:  # LAPACK's iteration may fail on what float32 cannot tell apart
        return torch.linalg.eigvalsh(_double(gram)).flip(-1).to(gram)


def _ranks_of_spectra(piece: Tensor, chosen: Tensor, spectrum: Tensor, taus: Sequence[float]) -> Tensor:
    """Return k* (m, taus) of the `chosen` (m,) matrices of a (n, T, T) batch from their float32 `spectrum` (m, T).

    The spectrum is the eigenvalues of the Gram matrix of trace 1, largest first.
    """
    shares = spectrum.double().clamp_(min=0).cumsum(dim=-1)
    ranks = torch.stack([_count_to_reach(shares, tau) for tau in taus], dim=-1)
    doubts = [_is_near(shares, ranks[:, i], tau, rounding(max(piece.shape[-2:]))) for i, tau in enumerate(taus)]
    for doubtful in _few_at_a_time(torch.stack(doubts).any(dim=0), max(piece.shape[-2:])):
        cumulative = _spectrum(piece if len(piece) == 1 else piece[chosen[doubtful]]).cumsum(dim=-1)
        exact = [_count_to_reach(cumulative / cumulative[:, -1:], tau) for tau in taus]
        ranks[doubtful] = torch.stack(exact, dim=-1).to(ranks.device)
    return ranks


def _spectrum(piece: Tensor) -> Tensor:
    """Return the eigenvalues of A^T A of a (n, T, T) batch, (n, T) float64, largest first."""
    if piece.shape[-1] > LARGE and piece.device.type == "cpu":
        return torch.stack([_large_spectrum(matrix) for matrix in piece])
    piece = _double(piece)
    return torch.linalg.eigvalsh(piece.mT @ piece).flip(-1).clamp_(min=0)


def _large_spectrum(matrix: Tensor) -> Tensor:
    """Return `_spectrum`, (T,), of one (T, T) matrix in the memory of one float64 matrix, which LAPACK overwrites."""
    from scipy.linalg import eigvalsh

    gram = torch.zeros(matrix.shape[-1], matrix.shape[-1], dtype=torch.float64)
    for band in matrix.split(256):
        wide = band.double()
        gram.addmm_(wide.mT, wide)
    # A symmetric matrix is its own transpose, which has the column order that LAPACK wants.
    values = eigvalsh(gram.numpy().T, overwrite_a=True, check_finite=False, driver="ev")
    return torch.from_numpy(values).flip(-1).clamp_(min=0)


def _double(piece: Tensor) -> Tensor:
    """Return a float64 copy of the same shape, on the CPU for a device that has no float64 (Apple's)."""
    return (piece.cpu() if piece.device.type == "mps" else piece).to(torch.float64, copy=True)


def _count_to_reach(shares: Tensor, threshold: float) -> Tensor:
    """Return how many leading parts reach `threshold`, from their cumulative shares (..., T)."""
    return 1 + (shares < threshold * (1 - SLACK)).sum(dim=-1).clamp(max=shares.shape[-1] - 1)


def _is_near(shares: Tensor, count: Tensor, threshold: float, margin: float) -> Tensor:
    """Return (n,) bool: whether the share (n, T) at `count` (n,) or just before is within `margin` of the threshold."""
    index = torch.stack([(count - 2).clamp(min=0), count - 1], dim=-1)
    return ((shares.gather(-1, index) - threshold).abs() <= margin).any(dim=-1)


def _few_at_a_time(mask: Tensor, length: int) -> Sequence[Tensor]:
    """Return the indices where `mask` (n,) is true, in groups whose float64 matrices take `DOUBLE_BYTES` or are one."""
    chosen = mask.nonzero()[:, 0]
    return chosen.split(max(1, DOUBLE_BYTES // (3 * 8 * length**2))) if len(chosen) else ()
