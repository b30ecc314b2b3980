"""The arithmetic against NumPy's float64 SVD, float64 counts, and spectra known by hand."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from inheritune.errors import InherituneError
from inheritune.spectra.measure import pieces
from inheritune.spectra.measure import rank as rank_module
from inheritune.spectra.measure.certificate import certify
from inheritune.spectra.measure.heads import HeadRanks, HeadTable, row_entropy
from inheritune.spectra.measure.pieces import plan_work
from inheritune.spectra.measure.rank import (
    approximate_rank,
    column_mass,
    rank_and_mass,
    sink_collapse,
    squared_singular_values,
    stable_rank,
)

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


def with_shares(shares: Sequence[float], length: int, seed: int = 0) -> torch.Tensor:
    """Return a float64 matrix whose squared singular values have these shares, in random directions."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (
        torch.linalg.qr(torch.randn(length, length, generator=generator, dtype=torch.float64)).Q for _ in "ab"
    )
    values = torch.zeros(length, dtype=torch.float64)
    values[: len(shares)] = torch.tensor(shares, dtype=torch.float64).sqrt()
    return (left * values) @ right.mT


def test_one_matrix_for_each_paper_case_at_100_tokens() -> None:
    one_hot = torch.zeros(100, 100)
    one_hot[:, 0] = 1
    batch = torch.stack([one_hot, torch.eye(100), torch.full((100, 100), 0.01), causal_uniform(100)])
    assert approximate_rank(batch).tolist() == [1, 90, 1, 5]
    assert approximate_rank(batch, (0.8, 0.95)).tolist() == [[1, 80, 1, 3], [1, 95, 1, 8]]
    assert column_mass(batch).tolist() == [1, 90, 90, 30]  # by hand: sum_i min(i, m) / i^2 reaches 0.9 H_100


@pytest.mark.parametrize("gap", [2e-6, 1e-5, 1e-4])
@pytest.mark.parametrize("length", [20, 100, 160])
def test_sums_of_known_spectra_on_both_sides_of_tau(length: int, gap: float) -> None:
    for k in (1, 2, 5, 12):
        for side in (-1, 1):
            first = (0.9 + side * gap) / k
            rest = (1 - k * first) / 4
            matrix = with_shares([first] * k + [rest] * 4, length, seed=k)
            assert approximate_rank(matrix).item() == (k if side > 0 else k + 1)
            assert approximate_rank(matrix.float()).item() == (k if side > 0 else k + 1)


@pytest.mark.parametrize("length", [100, 200])
@pytest.mark.parametrize("temperature", [0.05, 0.5, 2.0, 5.0])
@pytest.mark.parametrize("sink", [0.0, 3.0, 6.0])
def test_certificates_are_never_wrong(length: int, temperature: float, sink: float) -> None:
    generator = torch.Generator().manual_seed(1)
    queries, keys = torch.randn(2, 20, length, 16, generator=generator).unbind()
    logits = temperature * queries @ keys.mT / 4
    logits[..., 0] += sink
    matrices = logits.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf).softmax(-1)
    shares = shares_by_svd(matrices)
    gram = matrices.mT @ matrices / matrices.square().sum(dim=(-2, -1), keepdim=True)
    proved = certify(gram, TAUS[1:4]).rank.numpy()
    expected = np.stack([1 + (shares < tau).sum(-1) for tau in TAUS[1:4]], axis=-1)
    assert ((proved == expected) | (proved == 0)).all()
    assert approximate_rank(matrices, TAUS).T.tolist() == [[int(1 + (s < tau).sum()) for tau in TAUS] for s in shares]


def test_certificates_prove_most_low_ranks_and_leave_flat_spectra_alone() -> None:
    falling = np.geomspace(1, 1e-4, 30)
    low = torch.stack([with_shares(falling / falling.sum(), 200, seed) for seed in range(8)])
    flat = torch.stack([with_shares([1 / 200] * 200, 200, seed) for seed in range(8)])
    assert torch.equal(certify((low.mT @ low).float(), (0.9,)).rank[:, 0], approximate_rank(low))
    assert not certify((flat.mT @ flat).float(), (0.9,)).rank.any()


def test_proof_of_rank_one_is_never_wrong_near_the_threshold() -> None:
    # A sink of varying strength: the share of the first singular value passes through tau in small steps.
    strengths = torch.linspace(0.5, 1.0, 400)[:, None, None]
    sink = torch.zeros(20, 20)
    sink[:, 0] = 1
    even = torch.full((20, 20), 1 / 20)
    for target in (sink, even):
        matrices = strengths * target + (1 - strengths) * torch.eye(20)
        shares = shares_by_svd(matrices)
        assert 0 < (shares[:, 0] < 0.9).sum() < 400
        proved = rank_module._is_surely_rank_one(rank_module.columns_of(matrices), 20, 0.9).numpy()
        assert not (proved & (shares[:, 0] < 0.9)).any()
        assert proved.sum() > 0.9 * (shares[:, 0] >= 0.9).sum()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_measured_as_the_numbers_they_hold(dtype: torch.dtype) -> None:
    matrices = attention(100, 3.0, causal=True).to(dtype)
    expected = (1 + (shares_by_svd(matrices) < 0.9).sum(-1)).tolist()
    both = rank_and_mass(matrices)
    assert both.rank.tolist() == approximate_rank(matrices).tolist() == expected
    assert torch.equal(both.mass, column_mass(matrices.double()))


@pytest.mark.parametrize("temperature", [0.05, 1.0, 3.0])
def test_stable_rank_and_entropy_are_those_of_numpy(temperature: float) -> None:
    sink = torch.zeros(100, 100)
    sink[:, 2] = 1
    matrices = torch.cat([attention(100, temperature, causal).flatten(0, 1) for causal in (True, False)])
    matrices = torch.cat([matrices, matrices / 10 + 0.9 * sink])
    values = np.linalg.svd(matrices.double().numpy(), compute_uv=False)
    np.testing.assert_allclose(stable_rank(matrices), (values**2).sum(-1) / values[:, 0] ** 2, rtol=1e-5)
    exact = matrices.double().numpy()
    rows = -(exact * np.log(np.where(exact > 0, exact, 1))).sum(-1)
    np.testing.assert_allclose(row_entropy(matrices), rows.mean(-1), rtol=1e-5)


def test_entropy_known_by_hand() -> None:
    assert row_entropy(torch.full((8, 8), 1 / 8)).item() == pytest.approx(np.log(8))
    assert row_entropy(torch.eye(8)).item() == 0
    assert row_entropy(torch.full((2, 4, 4), 1 / 8)).tolist() == pytest.approx([np.log(8) / 2] * 2)


@pytest.mark.parametrize(
    ("length", "megabytes"), [(100, 256), (512, 256), (2048, 256), (4096, 256), (100, 1), (600, 8)]
)
def test_the_plan_of_the_work_stays_within_its_memory(length: int, megabytes: int) -> None:
    plan = plan_work(length, megabytes * 2**20, torch.device("cpu"))
    copies = 3.5 if plan.matrices == 1 else 10  # float32 copies of each matrix, as measured by benchmarks/spectra.py
    assert plan.workers * plan.matrices * copies * 4 * length**2 <= megabytes * 2**20
    assert plan.workers >= 1
    assert plan.matrices >= 1


def test_a_memory_too_small_for_one_matrix_is_refused() -> None:
    with pytest.raises(
        InherituneError, match=r"a memory budget of 100 MB is too small: one 4096 x 4096 .* need 224 MB"
    ):
        plan_work(4096, 100 * 2**20, torch.device("cpu"))


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
    monkeypatch.setattr(pieces, "PIECE_BYTES", 3 * 4 * 20 * 20)
    monkeypatch.setattr(pieces, "CACHED_BYTES", 2 * 4 * 20 * 20)
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
    with pytest.raises(InherituneError, match=r"tau is .* between 0 and 1"):
        approximate_rank(torch.eye(3), (0.9, share))
    with pytest.raises(InherituneError, match=r"eta is .* between 0 and 1"):
        column_mass(torch.eye(3), share)


def test_no_tau_at_all_is_refused() -> None:
    with pytest.raises(InherituneError, match="tau is empty"):
        approximate_rank(torch.eye(3), ())


def test_large_spectra_are_found_in_place_and_equal() -> None:
    matrices = attention(40, 2.0, causal=True)[0]
    expected = squared_singular_values(matrices)
    found = torch.stack([rank_module._large_spectrum(matrix) for matrix in matrices])
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13)


def test_a_worker_may_ask_for_workers() -> None:
    matrices = attention(20, 2.0, causal=True)
    expected = approximate_rank(matrices)
    for workers in (1, 2):
        nested = pieces.map_in_threads(approximate_rank, list(matrices), workers)
        assert torch.equal(torch.stack(nested), expected)


def test_mean_ranks_of_heads_that_come_in_pieces() -> None:
    ranks = np.random.default_rng(0).integers(1, 9, (4, 3, 2)).astype(float)  # sequences, heads, taus
    table = HeadTable(4, (0.8, 0.9))
    for sequence, head in ((2, 0), (0, 0), (0, 2), (2, 2)):
        rows, columns = slice(sequence, sequence + 2), slice(head, head + 2)
        piece = pieces.Piece(5, "causal", sequence, head, torch.empty(0))
        table.put(piece, HeadRanks(ranks[rows, columns]))
    assert table.layers() == (5,)
    np.testing.assert_array_equal(table.mean_rank("causal"), ranks.mean(axis=0)[None])
