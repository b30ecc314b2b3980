"""The compiled eigenvalues against LAPACK's float64 ones, on the spectra that are hard on bisection and reflections."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from inheritune.spectra.measure import kernels
from inheritune.spectra.measure.certificate import rounding

pytestmark = pytest.mark.skipif(not kernels.available(), reason="Numba is not installed")

LENGTHS = (16, 17, 31, 64, 100, 128, 256)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Keep PyTorch's small factorisations from spinning for a core that something else has."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def scaled(gram: torch.Tensor) -> torch.Tensor:
    """Return float32 Gram matrices of trace 1, exactly symmetric."""
    gram = gram.double()
    return (gram / gram.diagonal(dim1=-2, dim2=-1).sum(dim=-1)[:, None, None]).float()


def with_spectrum(values: torch.Tensor, count: int, seed: int = 0) -> torch.Tensor:
    """Return `count` matrices with the given eigenvalues and random eigenvectors."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.linalg.qr(torch.randn(count, len(values), len(values), generator=generator).double()).Q
    gram = vectors * values.double() @ vectors.mT
    return scaled((gram + gram.mT) / 2)


def attention(length: int, count: int, temperature: float, sink: float, causal: bool = True) -> torch.Tensor:
    generator = torch.Generator().manual_seed(length)
    logits = torch.randn(count, length, length, generator=generator) * temperature
    logits[..., 0] += sink
    weights = (logits + torch.full((length, length), -torch.inf).triu(1) if causal else logits).softmax(-1)
    return scaled(weights.mT @ weights)


def with_zero_rows(length: int, count: int) -> torch.Tensor:
    gram = attention(length, count, 2.0, 0.0)
    gram[:, length // 3 : length // 2] = 0
    gram[:, :, length // 3 : length // 2] = 0
    gram[:, -1] = gram[:, :, -1] = 0
    return scaled(gram)


FAMILIES: dict[str, Callable[[int], torch.Tensor]] = {
    "soft causal": lambda length: attention(length, 20, 1.0, 0.0),
    "sharp causal": lambda length: attention(length, 20, 4.0, 2.0),
    "sharp full": lambda length: attention(length, 20, 6.0, 0.0, causal=False),
    "sink": lambda length: attention(length, 20, 1.0, 8.0),
    "sink in the middle": lambda length: attention(length, 20, 1.0, 8.0, causal=False).roll((length // 2,) * 2, (1, 2)),
    "sink at the end": lambda length: attention(length, 20, 1.0, 8.0, causal=False).flip((1, 2)),
    "nearly rank one": lambda length: attention(length, 20, 0.01, 20.0, causal=False),
    "identity": lambda length: scaled(torch.eye(length).repeat(3, 1, 1)),
    "even average": lambda length: scaled(torch.ones(3, length, length)),
    "graded": lambda length: with_spectrum(torch.logspace(0, -12, length), 20),
    "graded upwards": lambda length: scaled(torch.logspace(-12, 0, length).diag().repeat(3, 1, 1)),
    "repeated": lambda length: with_spectrum(1.0 + torch.arange(length) % 3, 20),
    "half zero": lambda length: with_spectrum((torch.arange(length) % 2).double(), 20),
    "all equal": lambda length: with_spectrum(torch.ones(length), 20),
    "zero rows": lambda length: with_zero_rows(length, 20),
    "tiny beside": lambda length: with_spectrum(torch.tensor([1.0] + [1e-20] * (length - 1)), 20),
}  # fmt: skip


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("family", FAMILIES)
def test_partial_sums_are_those_of_float64(family: str, length: int) -> None:
    gram = FAMILIES[family](length)
    every = torch.linalg.eigvalsh(gram.double()).flip(-1).cumsum(dim=-1).numpy()
    for share in (0.8, 0.99, 2.0):
        found = kernels.leading_eigenvalues(gram, share).double().numpy()
        sums, exact = found.cumsum(axis=-1), every[:, : found.shape[1]]
        assert (np.diff(found) <= 0).all()
        assert (sums[:, -1] >= min(share, 1.0) - rounding(length)).all()
        given = found > 0  # what stands behind the share is zero
        assert np.abs(sums - exact)[given].max() < rounding(length) * (0.5 if length >= 64 else 0.75)


def test_only_the_upper_triangle_counts() -> None:
    gram = attention(40, 18, 2.0, 0.0)
    expected = kernels.leading_eigenvalues(gram, 0.9)
    assert torch.equal(kernels.leading_eigenvalues(gram.triu(), 0.9), expected)


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 33])
def test_a_matrix_has_the_same_eigenvalues_in_any_lane(count: int) -> None:
    gram = attention(50, 33, 2.0, 0.0)
    every = kernels.leading_eigenvalues(gram, 2.0)
    some = kernels.leading_eigenvalues(gram[33 - count :], 2.0)
    assert torch.equal(some, every[33 - count :]) if count else some.shape[0] == 0


def test_small_and_strided_matrices() -> None:
    small = attention(7, 3, 2.0, 0.0)
    torch.testing.assert_close(kernels.leading_eigenvalues(small, 0.9), torch.linalg.eigvalsh(small).flip(-1))
    gram = attention(30, 20, 2.0, 0.0)
    expected = kernels.leading_eigenvalues(gram[::2].clone(), 0.9)
    assert torch.equal(kernels.leading_eigenvalues(gram[::2], 0.9), expected)


def test_two_threads_at_once_find_what_one_finds() -> None:
    pieces = attention(100, 96, 2.0, 0.0).split(24)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda piece: kernels.leading_eigenvalues(piece, 0.9), pieces))
    for piece, values in zip(pieces, found, strict=True):
        assert torch.equal(values, kernels.leading_eigenvalues(piece, 0.9))


def test_the_thread_keeps_its_way_with_denormals() -> None:
    for flush in (True, False):
        torch.set_flush_denormal(flush)
        try:
            kernels.leading_eigenvalues(attention(20, 2, 1.0, 0.0), 0.9)
            assert (float(torch.full((1,), 2.0**-126).mul_(0.5)[0]) == 0) == flush
        finally:
            torch.set_flush_denormal(False)
