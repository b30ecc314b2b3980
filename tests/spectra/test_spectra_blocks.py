"""Block Influence, angular distance and the spectrum of MLP outputs against Hugging Face's states and NumPy float64."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from inheritune.decoder import open_decoder
from inheritune.errors import ModelError
from inheritune.records.analysis import AnalysisRecord
from inheritune.spectra.folder import from_record, to_record
from inheritune.spectra.measure import blocks
from inheritune.spectra.measure.blocks import BlockMeasures, BlockObserver, mlp_modules, rank_correlation
from inheritune.spectra.result import Spectra
from tiny import VOCABULARY, make_gpt2, make_llama, perturbed

DEPTH = 4
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MAMBA = {"mamba_d_state": 4, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
# What a block's MLP is called, written down here from the models' own forward functions: the oracle's side.
FAMILIES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "gpt2": ({}, ("mlp",)),
    "llama": ({}, ("mlp",)),
    "gpt_neox": ({"use_parallel_residual": True}, ("mlp",)),
    "falcon": ({"parallel_attn": True}, ("mlp",)),
    "gptj": ({"rotary_dim": 4}, ("mlp",)),
    "mpt": ({"d_model": 32, "n_heads": 4, "n_layers": DEPTH, "max_seq_len": 64}, ("ffn",)),
    "opt": ({"ffn_dim": 64, "word_embed_proj_dim": 32}, ("fc2",)),
    "biogpt": ({}, ("fc2",)),
    "xglm": ({"d_model": 32, "ffn_dim": 64, "attention_heads": 4, "num_layers": DEPTH}, ("fc2",)),
    "gemma2": ({"head_dim": 8, "sliding_window": 8}, ("mlp",)),
    "mixtral": (EXPERTS, ("mlp",)),
    "gpt_oss": (EXPERTS | {"head_dim": 8, "sliding_window": 8}, ("mlp",)),
    "granitemoeshared": (EXPERTS | {"shared_intermediate_size": 32}, ("block_sparse_moe", "shared_mlp")),
    "falcon_h1": ({"mamba_d_ssm": 32, **MAMBA, "mamba_d_head": 8}, ("feed_forward",)),
    "granitemoehybrid": (
        EXPERTS | MAMBA | {"shared_intermediate_size": 32, "layer_types": ["mamba", "attention"] * 2},
        ("block_sparse_moe", "shared_mlp"),
    ),
    "qwen3_next": (
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
        | {"shared_expert_intermediate_size": 16, "linear_num_value_heads": 4, "linear_num_key_heads": 2}
        | {"linear_key_head_dim": 8, "linear_value_head_dim": 8},
        ("mlp",),
    ),
    "lfm2": ({"layer_types": ["conv", "full_attention"] * 2}, ("feed_forward",)),
    "jamba": (
        {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "mamba_d_state": 4},
        ("feed_forward",),
    ),
}  # fmt: skip


def build(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](**SMALL | FAMILIES[family][0])
    return perturbed(AutoModelForCausalLM.from_config(config))


def tokens(sequences: int = 5, length: int = 20) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (sequences, length), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def observed(
    model: PreTrainedModel, ids: torch.Tensor, chunk: int = 2, tau: float = 0.9, eta: float = 0.9
) -> BlockMeasures:
    """Observe the model on a few sequences at a time, all blocks of a chunk before the next chunk."""
    observer = BlockObserver(tau, eta)
    with observer(open_decoder(model)):
        for piece in ids.split(chunk):
            model.base_model(input_ids=piece, use_cache=False)
    return observer.measures()


@torch.no_grad()
def states(model: PreTrainedModel, ids: torch.Tensor) -> np.ndarray:
    """Return Hugging Face's hidden states at the L + 1 block boundaries, (L + 1, N, T, D) float64.

    Its last entry is behind the final norm; a plain hook on the last block gives the state before it.
    """
    last: list[torch.Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        last.append(output[0] if isinstance(output, tuple) else output)

    with open_decoder(model).blocks[-1].register_forward_hook(keep):
        hidden = model(ids, output_hidden_states=True, use_cache=False).hidden_states
    return np.stack([state.double().numpy() for state in (*hidden[:-1], last[0])])


@torch.no_grad()
def mlp_outputs(model: PreTrainedModel, ids: torch.Tensor, names: tuple[str, ...]) -> np.ndarray:
    """Return the sum of the outputs of the modules `names` of each block, (L, N, T, D) float64."""
    kept: dict[tuple[int, str], np.ndarray] = {}

    def keeper(key: tuple[int, str]) -> Callable[..., None]:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            kept[key] = tensor.double().numpy().copy().reshape(*ids.shape, -1)

        return keep

    modules = open_decoder(model).blocks
    handles = [
        modules[i].get_submodule(n).register_forward_hook(keeper((i, n))) for i in range(len(modules)) for n in names
    ]
    model(ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return np.stack([sum(kept[layer, name] for name in names) for layer in range(len(modules))])  # type: ignore[misc]


def cosine(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    return (one * two).sum(-1) / np.linalg.norm(one, axis=-1) / np.linalg.norm(two, axis=-1)


def angular(hidden: np.ndarray) -> np.ndarray:
    """Return the (L, L + 1) distances of the last token from the definition."""
    depth = len(hidden) - 1
    distance = np.full((depth, depth + 1), np.nan)
    for layer in range(depth):
        for span in range(1, depth - layer + 1):
            cosines = cosine(hidden[layer, :, -1], hidden[layer + span, :, -1])
            distance[layer, span] = np.mean(np.arccos(cosines) / np.pi)
    return distance


def reach(parts: np.ndarray, share: float) -> np.ndarray:
    cumulative = np.cumsum(parts, axis=-1)
    return 1 + (cumulative < share * parts.sum(-1, keepdims=True)).sum(-1)


def ranks_and_masses(outputs: np.ndarray, tau: float, eta: float) -> tuple[np.ndarray, np.ndarray]:
    """Return k* by a float64 SVD and the count of rows, (L, N) each."""
    ranks = reach(np.linalg.svd(outputs, compute_uv=False) ** 2, tau)
    return ranks, reach(np.sort((outputs**2).sum(-1), axis=-1)[..., ::-1], eta)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_measure_equals_its_definition_on_hugging_faces_states(family: str) -> None:
    model, ids = build(family), tokens()
    found = observed(model, ids)
    hidden = states(model, ids)
    np.testing.assert_allclose(found.influence, 1 - cosine(hidden[:-1], hidden[1:]).mean((1, 2)), atol=2e-7)
    np.testing.assert_allclose(found.angular_distance, angular(hidden), atol=1e-6)
    ranks, masses = ranks_and_masses(mlp_outputs(model, ids, FAMILIES[family][1]), 0.9, 0.9)
    np.testing.assert_array_equal(found.mlp_rank, ranks.mean(-1))
    np.testing.assert_array_equal(found.mlp_mass, masses.mean(-1))
    np.testing.assert_allclose(found.mlp_rank_error, ranks.std(-1, ddof=1) / np.sqrt(len(ids)), rtol=1e-12)
    assert len(set(ranks.ravel())) > 1 and len(set(masses.ravel())) > 1  # the oracle has something to tell apart


@pytest.mark.parametrize(("tau", "eta", "length"), [(0.5, 0.8, 20), (0.99, 0.6, 20), (0.9, 0.9, 50)])
def test_thresholds_and_sequences_longer_than_the_model_is_wide(tau: float, eta: float, length: int) -> None:
    model, ids = make_gpt2(), tokens(3, length)
    found = observed(model, ids, tau=tau, eta=eta)
    ranks, masses = ranks_and_masses(mlp_outputs(model, ids, ("mlp",)), tau, eta)
    np.testing.assert_array_equal(found.mlp_rank, ranks.mean(-1))
    np.testing.assert_array_equal(found.mlp_mass, masses.mean(-1))


def test_a_model_in_bfloat16_is_measured_on_its_own_states() -> None:
    model, ids = make_llama().to(torch.bfloat16), tokens()
    found = observed(model, ids, chunk=5)
    hidden = states(model, ids)
    np.testing.assert_allclose(found.influence, 1 - cosine(hidden[:-1], hidden[1:]).mean((1, 2)), atol=2e-7)
    np.testing.assert_allclose(found.angular_distance, angular(hidden), atol=1e-6)
    ranks, _ = ranks_and_masses(mlp_outputs(model, ids, ("mlp",)), 0.9, 0.9)
    np.testing.assert_array_equal(found.mlp_rank, ranks.mean(-1))


@pytest.mark.parametrize("piece_bytes", [8, 3000, 20_000])
def test_the_size_of_a_piece_changes_nothing(piece_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = make_gpt2(), tokens()
    whole = observed(model, ids, chunk=5)
    monkeypatch.setattr(blocks, "PIECE_BYTES", piece_bytes)
    same(observed(model, ids, chunk=3), whole)


def same(one: BlockMeasures, two: BlockMeasures) -> None:
    np.testing.assert_array_equal(one.mlp_rank, two.mlp_rank)
    np.testing.assert_array_equal(one.mlp_mass, two.mlp_mass)
    np.testing.assert_array_equal(one.mlp_rank_error, two.mlp_rank_error)
    np.testing.assert_allclose(one.influence, two.influence, atol=1e-6)
    np.testing.assert_allclose(one.angular_distance, two.angular_distance, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("keyword", [False, True])
def test_block_by_block_gives_what_chunk_by_chunk_gives(keyword: bool) -> None:
    """All chunks through block 0, then all through block 1: with the input as a keyword or a position."""
    model, ids = make_gpt2(), tokens(7)
    decoder, inner = open_decoder(model), model.transformer
    hidden = inner.wte(ids) + inner.wpe(torch.arange(ids.shape[1]))
    observer = BlockObserver()
    with observer(decoder):
        for block in decoder.blocks:
            outputs = [block(hidden_states=piece) if keyword else block(piece) for piece in hidden.split(3)]
            hidden = torch.cat([output if isinstance(output, torch.Tensor) else output[0] for output in outputs])
    # A block on its own gets no mask, and the eager attention of GPT-2 is then not causal; SDPA's is.
    same(observer.measures(), observed(model, ids, chunk=7))


@torch.no_grad()
def test_states_are_let_go_of_once_a_sequence_has_passed_the_last_block() -> None:
    model, observer = make_gpt2(), BlockObserver()
    with observer(open_decoder(model)):
        for piece in tokens(6).split(2):
            model.base_model(input_ids=piece)
            assert not any(observer._ends._waiting)
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in open_decoder(model).blocks)


def test_one_sequence_has_no_standard_error() -> None:
    found = observed(make_gpt2(), tokens(1))
    assert np.isnan(found.mlp_rank_error).all() and np.isfinite(found.mlp_rank).all()


def test_blocks_that_do_nothing_and_blocks_that_turn() -> None:
    """By hand: an attention and MLP of zeros leave the state as it is; a state turned round is at distance 1."""
    model = make_gpt2(layers=2)
    with torch.no_grad():
        for name, weight in model.transformer.h.named_parameters():
            if "c_proj" in name:
                weight.zero_()
    found = observed(model, tokens())
    np.testing.assert_allclose(found.influence, 0, atol=1e-6)
    np.testing.assert_allclose(found.angular_distance[[0, 0, 1], [1, 2, 1]], 0, atol=1e-3)
    assert found.mlp_rank.tolist() == found.mlp_mass.tolist() == [1, 1]
    with model.transformer.h[1].register_forward_hook(lambda module, args, output: -args[0]):
        turned = observed(model, tokens())
    np.testing.assert_allclose(turned.influence, [0, 2], atol=1e-6)
    np.testing.assert_allclose(turned.angular_distance[[0, 0, 1], [1, 2, 1]], [0, 1, 1], atol=1e-3)


class Odd(nn.Module):
    """A block with the children that are given, for the rule that finds its MLP."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        for name in names:
            self.add_module(name, nn.Identity())


class NemotronHMLP(nn.Identity):
    pass


@pytest.mark.parametrize(
    ("children", "found"),
    [
        (("self_attn", "mlp", "pre_mlp_layernorm"), ["mlp"]),
        (("attn", "ffn", "ffn_norm", "ffn_hc"), ["ffn"]),
        (("mamba", "block_sparse_moe", "shared_mlp"), ["block_sparse_moe", "shared_mlp"]),
        (("temporal_block", "mlp_block", "channel_pre_norm"), ["mlp_block"]),
        (("self_attn", "fc1", "fc2", "final_layer_norm"), ["fc2"]),
        (("self_attn", "mlp", "router", "experts"), []),
        (("mamba", "input_layernorm"), []),
        (("norm", "mixer"), []),
    ],
)
def test_the_mlp_is_found_by_the_names_of_a_blocks_children(children: tuple[str, ...], found: list[str]) -> None:
    block = Odd(*children)
    assert mlp_modules(block) == [block.get_submodule(name) for name in found]


def test_a_block_that_is_an_mlp_is_found_by_its_class() -> None:
    block = Odd("norm")
    block.add_module("mixer", NemotronHMLP())
    assert mlp_modules(block) == [block.get_submodule("mixer")]


def test_blocks_without_an_mlp_have_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "mlp_modules", lambda block: [])
    found = observed(make_gpt2(), tokens())
    assert np.isnan(found.mlp_rank).all() and np.isnan(found.mlp_mass).all()
    assert np.isfinite(found.influence).all()
    assert [block.mlp_rank for block in record_of(found).blocks or ()] == [None] * 4


@torch.no_grad()
def test_blocks_that_pass_several_streams_on_have_no_number() -> None:
    class Streams(nn.Module):
        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            return 2 * hidden_states

    model = make_gpt2(layers=2)
    decoder, observer = open_decoder(model), BlockObserver()
    decoder.blocks[0] = decoder.blocks[1] = Streams()
    with observer(decoder):
        decoder.blocks[0](torch.ones(3, 4, 2, 8))
    found = observer.measures()
    assert np.isnan(found.influence).all() and np.isnan(found.angular_distance).all() and np.isnan(found.mlp_rank).all()


def test_overflow_names_the_layer() -> None:
    model = make_gpt2()
    with torch.no_grad():
        model.transformer.h[2].mlp.c_proj.bias.fill_(float("inf"))
    with pytest.raises(ModelError, match="the MLP output of layer 2 is not finite"):
        observed(model, tokens())


def test_measures_need_a_forward_pass() -> None:
    with pytest.raises(ValueError, match="no forward pass was observed"):
        BlockObserver().measures()


def by_hand() -> BlockMeasures:
    distance = np.array([[np.nan, 0.3, 0.4, 0.5], [np.nan, 0.1, 0.2, np.nan], [np.nan, 0.2, np.nan, np.nan]])
    return BlockMeasures(
        influence=np.array([0.5, 0.2, 0.3]),
        angular_distance=distance,
        mlp_rank=np.array([3.0, np.nan, 2.5]),
        mlp_rank_error=np.array([0.5, np.nan, 0.25]),
        mlp_mass=np.array([4.0, np.nan, 6.0]),
    )


def test_which_blocks_the_neighbours_would_cut() -> None:
    found = by_hand()
    assert (found.least_influential(1), found.least_influential(2)) == ([1], [1, 2])
    assert (found.nearest_span(1), found.nearest_span(2), found.nearest_span(3)) == ([1], [1, 2], [0, 1, 2])


def record_of(measures: BlockMeasures) -> AnalysisRecord:
    ones, layers = np.ones((measures.depth, 1)), tuple(range(measures.depth))
    return to_record(Spectra(ones, ones, 0.9, 0.9, "causal", 1, 3, layers, blocks=measures), "a model")


def test_measures_go_through_json_and_back() -> None:
    held = record_of(by_hand())
    record = json.loads(json.dumps(held.as_json(), allow_nan=False))
    assert record["angular_distance"] == [[0.3, 0.4, 0.5], [0.1, 0.2], [0.2]]
    assert record["blocks"][0] == {
        "index": 0, "influence": 0.5, "mlp_rank": 3.0, "mlp_rank_error": 0.5, "mlp_mass": 4.0
    }  # fmt: skip
    assert record["blocks"][1]["mlp_rank"] is None
    back = from_record(held).parts[0].blocks
    for name in ("influence", "angular_distance", "mlp_rank", "mlp_rank_error", "mlp_mass"):
        np.testing.assert_array_equal(getattr(back, name), getattr(by_hand(), name))


def test_two_measures_order_the_layers_alike_as_scipy_says() -> None:
    one, other = [3.0, 1.0, 2.0, 5.0, 4.0], [2.0, 1.0, 4.0, 3.0, 9.0]
    expected = spearmanr(one, other)
    assert rank_correlation(one, other) == (expected.statistic, expected.pvalue)
    assert rank_correlation(one, [1.0] * 5) is None
    assert rank_correlation(one[:2], other[:2]) is None
