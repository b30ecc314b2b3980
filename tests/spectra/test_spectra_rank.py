"""The arithmetic against NumPy's float64 SVD, float64 counts, and spectra known by hand."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from inheritune.errors import InherituneError
from inheritune.spectra import rank as rank_module
from inheritune.spectra.rank import approximate_rank, column_mass, sink_collapse, squared_singular_values

TAUS = (0.5, 0.8, 0.9, 0.95, 0.99)


def causal_uniform(length: int) -> torch.Tensor:
    return torch.ones(length, length).tril() / torch.arange(1, length + 1)[:, None]


def attention(length: int, temperature: float, causal: bool, seed: int = 0) -> torch.Tensor:
    logits = torch.randn(3, 4, length, length, generator=torch.Generator().manual_seed(seed)) * temperature
    return (logits + torch.full((length, length), -torch.inf).triu(1) if causal else logits).softmax(-1)


def shares_by_svd(matrices: torch.Tensor) -> np.ndarray:
    squares = np.linalg.svd(matrices.double().numpy(), compute_uv=False) ** 2
    return np.cumsum(squares, axis=-1) / squares.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("temperature", [0.05, 1.0, 3.0, 10.0])
@pytest.mark.parametrize("length", [2, 7, 50])
def test_rank_is_that_of_a_float64_svd(length: int, temperature: float, causal: bool) -> None:
    matrices = attention(length, temperature, causal)
    shares = shares_by_svd(matrices)
    for tau in TAUS:
        assert approximate_rank(matrices, tau).tolist() == (1 + (shares < tau).sum(-1)).tolist()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("temperature", [0.05, 1.0, 10.0])
def test_mass_is_a_float64_count_of_columns(temperature: float, causal: bool) -> None:
    matrices = attention(40, temperature, causal)
    norms = np.sort((matrices.double().numpy() ** 2).sum(axis=-2), axis=-1)[..., ::-1]
    shares = np.cumsum(norms, axis=-1) / norms.sum(axis=-1, keepdims=True)
    for eta in TAUS:
        assert column_mass(matrices, eta).tolist() == (1 + (shares < eta).sum(-1)).tolist()


def test_squared_singular_values_are_those_of_numpy() -> None:
    matrices = attention(30, 2.0, causal=True)
    expected = np.linalg.svd(matrices.double().numpy(), compute_uv=False) ** 2
    np.testing.assert_allclose(squared_singular_values(matrices).numpy(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("tau", "expected"), [(0.80, 3), (0.85, 4), (0.90, 5), (0.95, 8)])
def test_causal_uniform_attention_of_100_tokens(tau: float, expected: int) -> None:
    assert approximate_rank(causal_uniform(100), tau).item() == expected


def test_spectra_known_by_hand() -> None:
    one_hot = torch.zeros(10, 10)
    one_hot[:, 3] = 1
    uniform, identity = torch.full((10, 10), 0.1), torch.eye(10)
    batch = torch.stack([one_hot, uniform, identity, identity.roll(3, 0)])
    assert approximate_rank(batch, 0.9).tolist() == [1, 1, 9, 9]
    assert column_mass(batch, 0.9).tolist() == [1, 9, 9, 9]
    # Squared singular values 4, 2, 1, 1 of 8: 4/8 at one, 6/8 at two, 7/8 at three.
    known = torch.diag(torch.tensor([4.0, 2.0, 1.0, 1.0]).sqrt())
    assert [approximate_rank(known, tau).item() for tau in (0.49, 0.51, 0.74, 0.76, 0.87, 0.88)] == [1, 2, 2, 3, 3, 4]


def test_rank_and_mass_do_not_change_when_rows_or_columns_are_permuted() -> None:
    matrices = attention(25, 3.0, causal=False)
    order = torch.randperm(25, generator=torch.Generator().manual_seed(1))
    for moved in (matrices[..., order, :], matrices[..., :, order]):
        assert torch.equal(approximate_rank(moved), approximate_rank(matrices))
        assert torch.equal(column_mass(moved), column_mass(matrices))


def test_proof_of_rank_one_is_never_wrong_near_the_threshold() -> None:
    # A sink of varying strength: the share of the first singular value passes through tau in small steps.
    strengths = torch.linspace(0.5, 1.0, 400)[:, None, None]
    sink = torch.zeros(20, 20)
    sink[:, 0] = 1
    matrices = strengths * sink + (1 - strengths) * torch.eye(20)
    shares = shares_by_svd(matrices)
    assert 0 < (shares[:, 0] < 0.9).sum() < 400
    proved = rank_module._is_surely_rank_one(matrices, 0.9).numpy()
    assert not (proved & (shares[:, 0] < 0.9)).any()
    assert proved.sum() > 0.95 * (shares[:, 0] >= 0.9).sum()


def test_sink_collapse_bounds_the_second_singular_value() -> None:
    generator = torch.Generator().manual_seed(0)
    for eps in (0.3, 0.05, 0.001):
        rest = torch.rand(20, 20, generator=generator)
        rest[:, 6] = 0
        rest = eps * rest / rest.sum(-1, keepdim=True)
        rest[:, 6] = 1 - eps
        column, epsilon = sink_collapse(rest)
        assert column.item() == 6
        assert epsilon.item() == pytest.approx(eps, abs=1e-6)
        second = np.linalg.svd(rest.double().numpy(), compute_uv=False)[1]
        assert second <= epsilon.item() * np.sqrt(2 * 20)  # Theorem H.1 (i)


def test_threads_and_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    matrices = attention(20, 2.0, causal=True)
    expected = approximate_rank(matrices), column_mass(matrices)
    monkeypatch.setattr(rank_module, "PIECE_BYTES", 3 * 8 * 20 * 20)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert torch.equal(approximate_rank(matrices), expected[0])
        assert torch.equal(column_mass(matrices), expected[1])
        assert torch.get_num_threads() == 2
        seen: list[int] = []
        thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert seen == [2]  # threads made later are not left with one core
    finally:
        torch.set_num_threads(before)


def test_nan_is_refused() -> None:
    matrix = torch.eye(4)
    matrix[2, 1] = torch.nan
    for function in (approximate_rank, column_mass):
        with pytest.raises(ValueError, match="NaN"):
            function(matrix)


@pytest.mark.parametrize("share", [0.0, 1.0, -1, 2, float("nan"), "0.9", True])
def test_share_outside_0_and_1_is_refused(share: object) -> None:
    with pytest.raises(InherituneError, match=r"tau is .* between 0 and 1"):
        approximate_rank(torch.eye(3), share)
    with pytest.raises(InherituneError, match=r"eta is .* between 0 and 1"):
        column_mass(torch.eye(3), share)
