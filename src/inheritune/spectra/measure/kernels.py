"""Leading eigenvalues of many small Gram matrices on the CPU, several times as fast as LAPACK's, where Numba is there.

LAPACK takes one matrix at a time, and at T = 100 most of its work is in vectors too short to fill a core's registers.
The compiled kernel takes 16 matrices at once, one in each lane of a register (`lanes`, `tridiagonal`).
Numba is loaded, and the kernel compiled or taken from Numba's cache, when it is first asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

LEAST_SIZE = 16
"""T below which the kernel has no full block to copy; `leading_eigenvalues` takes LAPACK there."""

GREATEST_SIZE = 512
"""T above which 16 packed matrices are far too large for a core's cache, and LAPACK or a certificate costs no more."""


@cache
def available() -> bool:
    """Return whether the kernel can be used: Numba is installed, fits this NumPy, and finds a place for its cache."""
    try:
        import inheritune.spectra.measure.tridiagonal  # noqa: F401
    except (ImportError, RuntimeError):
        return False
    return True


def suits(gram: Tensor) -> bool:
    """Return whether `leading_eigenvalues` can take these (n, T, T) matrices and is the fastest way to their rank.

    It works on whole groups of 16, at about a tenth of LAPACK's cost for T up to 100 and T / 1000 of it beyond.
    """
    count, length, _ = gram.shape
    fits = gram.device.type == "cpu" and LEAST_SIZE <= length <= GREATEST_SIZE and str(gram.dtype) == "torch.float32"
    return fits and 16 * -(-count // 16) * max(0.1, length / 1000) <= count and available()


def leading_eigenvalues(gram: Tensor, share: float) -> Tensor:
    """Return eigenvalues of each matrix, largest first, at least until their sum reaches `share`.

    Sums of them are within about sqrt(T) 2^-24 of the trace of the float64 ones. The global interpreter lock is not
    held, so that several threads can work at once.

    Args:
        gram: (n, T, T) float32 on the CPU, symmetric positive semi-definite, of trace 1; only the upper triangle
            counts.
        share: the sum at which to stop; all eigenvalues where a matrix does not reach it.

    Returns:
        (n, K) float32, K <= T; zeros from where enough were found for a matrix and its neighbours.
    """
    import torch

    n, length, _ = gram.shape
    if length < LEAST_SIZE:
        return torch.linalg.eigvalsh(gram).flip(-1)

    from inheritune.spectra.measure.tridiagonal import eigenvalues_of_all, work_rows

    work = torch.empty(work_rows(length), 16)  # a tensor, because it begins at a multiple of 64 bytes
    found = torch.zeros(n, length)
    with _denormals_flushed():
        most = eigenvalues_of_all(gram.detach().contiguous().numpy(), share, work.numpy(), found.numpy())
    return found[:, :most]


@contextmanager
def _denormals_flushed() -> Iterator[None]:
    """Have this thread take denormal numbers for zero: an attention's tiny products would take ten times as long."""
    import torch

    flushed = float(torch.full((1,), 2.0**-126).mul_(0.5)[0]) == 0.0
    if flushed:
        yield
        return
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
