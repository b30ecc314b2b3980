"""The price of layers, with the model that the surgery builds, and plain forward passes, as the oracle."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from surgery_families import DEPTH, FAMILIES, source
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from inheritune import surgery
from inheritune.decoder import open_decoder, save_model
from inheritune.decoder.streaming import open_streamed
from inheritune.errors import DataError, InherituneError, ModelError, PlanError
from inheritune.evaluation import removal
from inheritune.evaluation.loss import window_losses
from inheritune.evaluation.removal import open_remover
from inheritune.surgery import ablation
from inheritune.surgery.ablation import ablate

LENDERS = ("gemma3n_text", "gemma4_text")
"""Families whose later layers read the keys and values of an earlier one."""


def windows(count: int = 5, length: int = 12, vocabulary: int = 97) -> np.ndarray:
    return np.random.default_rng(0).integers(3, vocabulary, (count, length + 1))


def llama(layers: int = 6, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def losses_of_cut(model: PreTrainedModel, removed: tuple[int, ...], data: np.ndarray) -> np.ndarray:
    """Return the losses of the model that the surgery builds without some layers."""
    kept = [layer for layer in range(open_decoder(model).layers) if layer not in removed]
    return window_losses(surgery.inherit(model, layers=kept), data)


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - set(LENDERS)))
def test_losses_are_those_of_the_cut_models(name: str) -> None:
    model, data = source(name), windows()
    sets = [frozenset[int](), *map(frozenset, itertools.combinations(range(DEPTH), 1)), frozenset([0, 2])]
    losses = open_remover(open_decoder(model), data).losses(data, sets)
    np.testing.assert_allclose(losses[0], window_losses(model, data), rtol=0, atol=1e-6)
    compared = 0
    for removed, found in zip(sets[1:], losses[1:], strict=True):
        try:
            expected = losses_of_cut(model, tuple(removed), data)
        except PlanError:  # a layer that the others need
            continue
        compared += 1
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)
    assert compared >= 2


@pytest.mark.parametrize("name", LENDERS)
def test_layers_that_others_read_are_refused_and_the_others_priced(name: str) -> None:
    model, data = source(name), windows()
    found = ablate(model, data)
    assert found.refused
    for layer in range(DEPTH):
        if layer in found.refused:
            with pytest.raises(PlanError):
                losses_of_cut(model, (layer,), data)
        else:
            assert found.losses[layer] == pytest.approx(losses_of_cut(model, (layer,), data).mean(), abs=2e-6)
    for cut in found.cuts:
        assert cut.loss == pytest.approx(losses_of_cut(model, cut.removed, data).mean(), abs=2e-6)


def test_the_path_is_the_plain_greedy_search() -> None:
    model, data = llama(), windows()
    found = ablate(model, data)
    assert found.loss == pytest.approx(window_losses(model, data).mean(), abs=1e-6)
    removed: tuple[int, ...] = ()
    for layer, loss in found.path:
        left = [i for i in range(6) if i not in removed]
        plain = {i: losses_of_cut(model, (*removed, i), data).mean() for i in left}
        assert layer == min(plain, key=plain.__getitem__)
        assert loss == pytest.approx(plain[layer], abs=1e-6)
        removed = (*removed, layer)
    assert len(removed) == 5
    assert found.kept(4) == tuple(sorted(set(range(6)) - set(removed[:2])))


def test_a_wide_beam_finds_the_best_set_of_each_size() -> None:
    model, data = llama(5, seed=3), windows()
    found = ablate(model, data, beam=20)
    for size, cut in enumerate(found.cuts, 1):
        every = {
            removed: losses_of_cut(model, removed, data).mean() for removed in itertools.combinations(range(5), size)
        }
        assert tuple(sorted(cut.removed)) == min(every, key=every.__getitem__)
    assert found.steps[-1].removed == found.cuts[-1].removed
    assert [cut.removed for cut in found.steps] == [found.cuts[-1].removed[: k + 1] for k in range(len(found.steps))]


def test_leave_one_out_runs_half_of_the_blocks() -> None:
    model, data, layers = llama(8), windows(), 8
    runs = []
    for block in open_decoder(model).blocks:
        block.register_forward_hook(lambda *given: runs.append(1))
    ablate(model, data, depth=layers)
    assert len(runs) <= layers * (layers / 2 + 2)
    assert len(runs) == layers * (layers + 1) / 2 + 1  # one more on two tokens, to try the model out


def test_the_model_stays_as_it_was() -> None:
    model = llama().train()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    blocks = list(open_decoder(model).blocks)
    ablate(model, windows(), depth=4)
    assert model.training and list(open_decoder(model).blocks) == blocks
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_a_model_read_by_layer_has_the_same_prices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(llama(), tmp_path / "model")
    data = windows(7)
    plain = ablate(tmp_path / "model", data)
    streamed = ablate(tmp_path / "model", data, stream=True)
    assert streamed.path == plain.path
    np.testing.assert_array_equal(streamed.losses, plain.losses)
    state = 4 * 12 * 32
    monkeypatch.setattr(removal, "STATE_BYTES", 3 * state * 16)  # three windows together
    monkeypatch.setattr(removal, "STREAMED_BYTES", 3 * state * 6)  # and no more held
    remover = open_remover(open_streamed(tmp_path / "model"), data)
    assert (remover.rows, remover.group) == (3, 3)
    np.testing.assert_allclose(ablate(tmp_path / "model", data, stream=True).losses, plain.losses, rtol=0, atol=1e-6)


def test_stopped_work_goes_on_and_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data, store = llama(), windows(), tmp_path / "losses.npz"
    whole = ablate(model, data)
    monkeypatch.setattr(ablation, "SAVE_SECONDS", 0.0)
    real, calls = removal.Remover.losses, []

    def stop_at_the_third(self: removal.Remover, *given: object) -> np.ndarray:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(removal.Remover, "losses", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        ablate(model, data, store=store)
    assert store.is_file()
    resumed = ablate(model, data, store=store)
    assert resumed.path == whole.path
    np.testing.assert_array_equal(resumed.losses, whole.losses)
    counted = len(calls)
    ablate(model, data, store=store)
    assert len(calls) == counted + 1  # all of it is known but that it is the same model
    other, windows_changed = llama(seed=1), data[:, ::-1].copy()
    for changed, given in ((other, data), (model, windows_changed)):
        assert ablate(changed, given, store=store).path == ablate(changed, given).path


def test_a_damaged_store_is_not_used(tmp_path: Path) -> None:
    store = tmp_path / "losses.npz"
    for content in (b"", b"no archive", b"PK\x03\x04cut"):
        store.write_bytes(content)
        assert ablate(llama(), windows(), depth=5, store=store).path == ablate(llama(), windows(), depth=5).path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 0}, "depth 0: expected 1 to 6"),
        ({"depth": 7}, "depth 7: expected 1 to 6"),
        ({"beam": 0}, "beam 0: expected at least 1"),
    ],
)
def test_what_cannot_be_is_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(InherituneError, match=message):
        ablate(llama(), windows(), **change)  # type: ignore[arg-type]


def test_a_model_of_one_layer_has_none_to_leave_out() -> None:
    with pytest.raises(InherituneError, match="the model has one layer: expected at least 2"):
        ablate(llama(1), windows())


def test_tokens_that_the_model_cannot_read_are_refused() -> None:
    with pytest.raises(DataError, match="context"):
        ablate(llama(), windows(length=70))
    with pytest.raises(DataError, match="token 200 in window"):
        ablate(llama(), windows(vocabulary=201))


def test_a_model_in_memory_whose_blocks_cannot_run_one_by_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    base = model.base_model

    def backwards(**inputs: torch.Tensor) -> object:
        states = base.embed_tokens(inputs["input_ids"])
        for block in reversed(base.layers):
            states = block(states)
        return states

    monkeypatch.setattr(base, "forward", backwards)
    with pytest.raises(ModelError, match="cannot leave out layers of this LlamaForCausalLM: its blocks use more"):
        ablate(model, windows())


def test_damaged_weights_are_refused() -> None:
    model = llama()
    open_decoder(model).blocks[2].mlp.up_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(ModelError, match="layer 2"):
        ablate(model, windows())
