"""The approximate rank from a small subspace: proved, or not said at all.

A Gram matrix G (T x T, scaled to trace 1) has eigenvalues l_1 >= l_2 >= ..., the shares of the squared singular values,
and k*(tau) is the least k whose partial sum S_k = l_1 + ... + l_k reaches tau. A full eigen-decomposition gives more
than that asks for. Here an orthonormal V (T x b, b a little more than the k expected) spans nearly the leading
eigenvectors; with t_1 >= ... >= t_b the eigenvalues of V'GV (Ritz values), and R = GV - V(V'GV):

- from below, S_k >= t_1 + ... + t_k for every k (Ky Fan 1949), so the first partial sum of the t that reaches tau
  proves k* <= k;
- from above, let D be G on the complement of V and d >= its largest eigenvalue. Write the leading eigenvectors as
  X = VC + WS, W a basis of the complement. The part in V loses at least t_j ||S||^2 (partial sums are concave), the
  part outside gains at most d ||S||^2, and the coupling at most 2 ||R|| ||S||; the greatest total over ||S|| gives
  S_j <= t_1 + ... + t_j + ||R||^2 / (t_j - d) for d < t_j. With j = k - 1 below tau, k* > j.

d is bounded by the Frobenius norm of D, which follows from ||G||^2 = ||V'GV||^2 + 2 ||R||^2 + ||D||^2.
All of it is matrix products on (T, b) blocks in float32; `rounding` is kept off every comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

LEAST_SIZE = 80
"""Below this T an eigen-decomposition costs no more than a certificate."""

WIDEST = 0.35
"""Share of T above which a block is so wide that an eigen-decomposition costs no more (measured, T = 100 to 1024)."""

MOST_EXPECTED = 8.0
"""Expected rank above which a block fails too often (measured): with a sink the true rank is three times higher."""

MOST_COLUMNS = 256
"""Width above which a block of long columns takes more memory than a certificate is worth."""

POWER_STEPS = 2
"""Products with the deflated G that turn random columns into the block V."""


class Certified(NamedTuple):
    """What could be proved of n matrices.

    Attributes:
        rank: (n, taus) int64, k*, or 0 where it was not proved for every tau.
        top: (n,) float32, the largest Ritz value, a lower bound on l_1 that is sharp where the rank was proved.
    """

    rank: Tensor
    top: Tensor


class _Block(NamedTuple):
    """What a subspace says: the Ritz values (n, b), descending, ||R|| (n,), and whether V is orthonormal (n,)."""

    ritz: Tensor
    residual: Tensor
    sound: Tensor


def rounding(length: int) -> float:
    """Return by how much a float32 share of the trace of a T x T Gram matrix may be off: min(4 sqrt(T), 64) 2^-24.

    Sums of T rounded products err by about sqrt(T) units of rounding (Higham and Mary 2019), and blocked sums of long
    columns by less. The largest error seen in partial sums of eigenvalues, over trained and random heads, is
    0.9 sqrt(T) 2^-24 at T = 100, 0.4 at T = 512 and 0.03 at T = 2048.
    """
    return min(4.0 * length**0.5, 64.0) * 2.0**-24


def certify(gram: Tensor, taus: Sequence[float]) -> Certified:
    """Prove k*(taus) for as many as a small subspace can of (n, T, T) float32 Gram matrices, each of trace 1."""
    rank = torch.zeros(len(gram), len(taus), dtype=torch.int64, device=gram.device)
    top = torch.zeros(len(gram), dtype=torch.float32, device=gram.device)
    if gram.shape[-1] < LEAST_SIZE:
        return Certified(rank, top)
    vector, size = _leading(gram)
    widths = _widths(gram, size, max(taus))
    for width in widths.unique().tolist():
        if width > min(WIDEST * gram.shape[-1], MOST_COLUMNS):
            continue
        chosen = (widths == width).nonzero()[:, 0]
        part = gram if len(chosen) == len(gram) else gram[chosen]
        block = _block(part, vector[chosen], size[chosen], width)
        top[chosen] = block.ritz[:, 0]
        rank[chosen] = _prove(part, block, taus)
    return Certified(rank, top)


def _leading(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return about the leading eigenvectors (n, T, 1) and eigenvalues (n,) of (n, T, T), two power steps from even."""
    vector = gram.sum(dim=-1, keepdim=True)
    vector = torch.bmm(gram, vector / torch.linalg.vector_norm(vector, dim=-2, keepdim=True))
    size = torch.linalg.vector_norm(vector, dim=-2, keepdim=True)
    return vector / size, size[:, 0, 0]


def _widths(gram: Tensor, leading: Tensor, tau: float) -> Tensor:
    """Return how wide a block is likely to prove k*(tau) of each matrix, (n,) int64, a multiple of 8.

    With the `leading` (n,) apart, eigenvalues that fall geometrically with the sum and the sum of squares of the others
    have L = `spread` / 2 of them from one value to 1/e of it, and the rank expected follows. The width is the lesser of
    two that come close to the one that proved attention matrices fastest at T = 100, 512 and 1024, for heads with a
    sink and for even ones. Where more than `MOST_EXPECTED` is expected it is T, too wide to be tried.
    """
    length, left = gram.shape[-1], (1 - leading).clamp(min=1e-6)
    squares = torch.linalg.vector_norm(gram, dim=(-2, -1)).square() - leading.square()
    spread = left.square() / squares.clamp(min=1e-9)
    share = ((tau - leading) / left).clamp(0, 0.999)
    expected = 1 - spread / 2 * torch.log1p(-share)
    with_sink = length / 8 + 0.4 * length**0.5 * expected
    even = 8 + 2 * expected + 0.2 * length**0.5 * spread
    width = 8 * (with_sink.minimum(even) / 8).clamp(max=1e6).to(torch.int64)
    return width.where(expected <= MOST_EXPECTED, length)


def _block(gram: Tensor, vector: Tensor, size: Tensor, width: int) -> _Block:
    """Return blocks of `width` columns for (n, T, T) matrices: the leading vector, and a power of G on random columns.

    The leading eigenvalue, the sink's, would drown all others in the rounding of a power of G, so it is taken out.
    """
    n, length, _ = gram.shape
    generator = torch.Generator().manual_seed(0)  # the same columns each time: nothing proved depends on them
    start = torch.randn(length, width - 1, generator=generator).to(gram.device).expand(n, length, width - 1)
    deflated = torch.baddbmm(gram, vector * size[:, None, None], vector.mT, alpha=-1)
    for _ in range(POWER_STEPS):
        start = torch.bmm(deflated, start)
    del deflated
    basis, sound = _orthonormal(torch.cat([vector, start], dim=-1))
    product = torch.bmm(gram, basis)
    inner = torch.bmm(basis.mT, product)
    inner = torch.where(sound[:, None, None], inner, torch.eye(width, device=gram.device))
    ritz = torch.linalg.eigvalsh((inner + inner.mT) / 2).flip(-1)
    residual = torch.linalg.vector_norm(torch.baddbmm(product, basis, inner, alpha=-1), dim=(-2, -1))
    return _Block(ritz, residual, sound)


def _orthonormal(columns: Tensor) -> tuple[Tensor, Tensor]:
    """Return an orthonormal basis (n, T, b) float32 of the columns, and whether it is one, (n,).

    The Cholesky factor of the columns' own Gram matrix does it at the speed of matrix products, with an error of the
    square of the columns' condition; where that shows, a second time does away with it (CholeskyQR2, Yamamoto 2015).
    """
    basis = columns.to(torch.float64) if columns.device.type != "mps" else columns
    unit = torch.eye(columns.shape[-1], device=columns.device, dtype=basis.dtype)
    failed = torch.zeros(len(columns), dtype=torch.bool, device=columns.device)
    for _ in range(2):
        basis = basis / torch.linalg.vector_norm(basis, dim=-2, keepdim=True)
        factor, info = torch.linalg.cholesky_ex(torch.bmm(basis.mT, basis))
        basis = torch.linalg.solve_triangular(factor, basis.mT, upper=False).mT.nan_to_num()
        failed |= info != 0
        error = (torch.bmm(basis.mT, basis) - unit).abs().amax(dim=(-2, -1))
        sound = ~failed & (error < rounding(columns.shape[-2]) / 4)
        if (sound | failed).all():
            break
    return basis.float(), sound


def _prove(gram: Tensor, block: _Block, taus: Sequence[float]) -> Tensor:
    """Return (n, taus) k* where it is proved for every tau, else 0."""
    slack = rounding(gram.shape[-1])
    sums = block.ritz.cumsum(dim=-1)
    coupling = (block.residual + slack).square()
    inside = block.ritz.square().sum(dim=-1) + 2 * (block.residual - slack).clamp(min=0).square()
    outside = (gram.square().sum(dim=(-2, -1)) * (1 + slack) - inside).clamp(min=0).sqrt()
    ranks, proved = [], block.sound
    for tau in taus:
        reached = sums >= tau + slack
        index = reached.int().argmax(dim=-1)
        before = (index - 1).clamp(min=0).unsqueeze(-1)
        room = tau - slack - sums.gather(-1, before)[:, 0]  # by how much S_j may exceed the Ritz sum
        most = block.ritz.gather(-1, before)[:, 0] - coupling / room  # what d may be at most
        proved = proved & reached[:, -1] & ((index == 0) | (room > 0) & (outside < most))
        ranks.append(index + 1)
    return torch.stack(ranks, dim=-1) * proved[:, None]
