"""The gradient probe against `loss.backward()` on the plain model, and Theorem H.1 (iii) on heads driven to a sink."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from inheritune.decoder import open_decoder
from inheritune.errors import DataError, ModelError
from inheritune.spectra.gradients import GradientProbe, gradient_probe, layer_gradients
from inheritune.spectra.watch import recording
from tiny import make_gpt2, make_llama, perturbed

SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 10000.0}
MLA = {
    "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
    "v_head_dim": 8, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2,
    "moe_intermediate_size": 32, "first_k_dense_replace": 1,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "afmoe": {"num_dense_layers": 2, "sliding_window": 8, "head_dim": 8},
    "gemma2": {"sliding_window": 8, "head_dim": 8, "attn_logit_softcapping": 2.0},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8, "head_dim": 8},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "llama": {"rope_parameters": YARN},
    "mistral": {"sliding_window": 8, "head_dim": 8},
    "olmo2": {},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "stablelm": {},
}
"""Families with matrices of their own for queries and keys."""
NORMED = {"afmoe", "olmo2", "qwen3", "lfm2"}


def build(family: str, **settings: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](**SMALL | settings)
    return perturbed(AutoModelForCausalLM.from_config(config, attn_implementation="eager"))


def tokens(sequences: int = 3, length: int = 24) -> torch.Tensor:
    return torch.randint(3, 97, (sequences, length), generator=torch.Generator().manual_seed(0))


def backward(model: PreTrainedModel, ids: torch.Tensor) -> tuple[float, dict[str, torch.Tensor]]:
    """Return the loss and the gradient of every weight, the ordinary way."""
    model.zero_grad()
    loss = model(ids, labels=ids, use_cache=False).loss
    loss.backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    return float(loss.detach()), gradients


def row_norms(gradient: torch.Tensor, heads: int) -> np.ndarray:
    """Return the norm of each head's rows of a `Linear`'s gradient."""
    return gradient.unflatten(0, (heads, -1)).flatten(1).norm(dim=1).numpy()


# -- Exactness ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scaled", [False, True])
def test_heads_of_gpt2_are_the_columns_of_its_fused_matrix(scaled: bool) -> None:
    model, ids = make_gpt2(scale_attn_by_inverse_layer_idx=scaled).double(), tokens()
    probe = gradient_probe(model, ids)
    loss, gradients = backward(model, ids)
    assert probe.loss == pytest.approx(loss, rel=1e-6)  # transformers sums the loss in float32
    for layer in range(4):
        query, key, _ = gradients[f"transformer.h.{layer}.attn.c_attn.weight"].T.split(32)
        np.testing.assert_allclose(probe.query[layer], row_norms(query, 4), rtol=1e-5)
        np.testing.assert_allclose(probe.key[layer], row_norms(key, 4), rtol=1e-5)


def test_heads_of_llama_are_rows_of_its_matrices() -> None:
    model, ids = build("llama", num_key_value_heads=4), tokens()
    probe = gradient_probe(model, ids)
    _, gradients = backward(model, ids)
    for layer in range(2):
        for ours, name in ((probe.query, "q_proj"), (probe.key, "k_proj")):
            theirs = gradients[f"model.layers.{layer}.self_attn.{name}.weight"]
            np.testing.assert_allclose(ours[layer], row_norms(theirs, 4), rtol=1e-4)


def test_heads_of_gpt_neox_are_interleaved() -> None:
    model, ids = build("gpt_neox"), tokens()
    probe = gradient_probe(model, ids)
    _, gradients = backward(model, ids)
    for layer in range(2):
        fused = gradients[f"gpt_neox.layers.{layer}.attention.query_key_value.weight"].view(4, 3, 8, 32)
        np.testing.assert_allclose(probe.query[layer], fused[:, 0].flatten(1).norm(dim=1).numpy(), rtol=1e-4)
        np.testing.assert_allclose(probe.key[layer], fused[:, 1].flatten(1).norm(dim=1).numpy(), rtol=1e-4)


def test_heads_that_share_keys_have_a_part_each() -> None:
    """The same function with the shared key and value heads written out twice tells the parts apart."""
    shared, apart, ids = build("llama"), build("llama", num_key_value_heads=4), tokens()
    state = shared.state_dict()
    for name in state:
        if "k_proj" in name or "v_proj" in name:
            state[name] = state[name].view(2, 8, 32).repeat_interleave(2, dim=0).reshape(32, 32)
    apart.load_state_dict(state)
    probe = gradient_probe(shared, ids)
    together = layer_gradients(open_decoder(shared), ids)
    (_, parts), (_, sums) = backward(apart, ids), backward(shared, ids)
    for layer in range(2):
        name = f"model.layers.{layer}.self_attn.k_proj.weight"
        np.testing.assert_allclose(probe.key[layer], row_norms(parts[name], 4), rtol=1e-4)
        assert together.key[layer] == pytest.approx(float(sums[name].norm()), rel=1e-4)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_layers_equal_backward_and_bounds_hold(family: str) -> None:
    model, ids = build(family, **FAMILIES[family]), tokens()
    probe, layers = gradient_probe(model, ids), layer_gradients(open_decoder(model), ids)
    loss, gradients = backward(model, ids)
    assert probe.loss == pytest.approx(loss, rel=1e-5)
    assert probe.layers_index == layers.layers_index == ((1,) if family == "lfm2" else (0, 1))
    for row, layer in enumerate(probe.layers_index):
        of_layer = {name: g for name, g in gradients.items() if f"layers.{layer}." in name}
        query, key = (next(g for name, g in of_layer.items() if f"{side}_proj.weight" in name) for side in "qk")
        assert layers.query[row] == pytest.approx(float(query.norm()), rel=1e-4)
        assert layers.key[row] == pytest.approx(float(key.norm()), rel=1e-4)
        if family != "olmo2":  # its norm joins the heads
            np.testing.assert_allclose(probe.query[row], row_norms(query, 4), rtol=1e-4)
    if family in NORMED:
        assert np.isnan(probe.query_bound).all() and np.isnan(probe.key_bound).all()
        assert np.isfinite(probe.query).all() and np.isfinite(probe.key).all()
    else:
        assert (probe.query < probe.query_bound).all() and (probe.key < probe.key_bound).all()


def test_a_model_that_scales_its_embeddings_in_place() -> None:
    model, ids = build("ctrl", dff=48), tokens()
    found, (loss, gradients) = layer_gradients(open_decoder(model), ids), backward(model, ids)
    assert found.loss == pytest.approx(loss, rel=1e-5)
    for side, norms in (("q", found.query), ("k", found.key)):
        for layer, norm in enumerate(norms):
            expected = gradients[f"transformer.h.{layer}.multi_head_attention.W{side}.weight"].norm()
            assert norm == pytest.approx(float(expected), rel=1e-4)


def test_queries_made_by_two_matrices_count_both() -> None:
    model, ids = build("deepseek_v3", **MLA), tokens()
    layers, probe = layer_gradients(open_decoder(model), ids), gradient_probe(model, ids)
    _, gradients = backward(model, ids)
    for layer in range(2):
        low, high = (gradients[f"model.layers.{layer}.self_attn.q_{part}_proj.weight"] for part in "ab")
        assert layers.query[layer] == pytest.approx(math.hypot(low.norm(), high.norm()), rel=1e-4)
    assert np.isnan(probe.query_bound).all() and (probe.query > 0).all()


def test_sequences_add_up_as_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = make_gpt2(), tokens(5)
    whole, layers = gradient_probe(model, ids), layer_gradients(open_decoder(model), ids)
    monkeypatch.setattr(recording, "CHUNK_BYTES", 1)
    parts, layers_in_parts = gradient_probe(model, ids), layer_gradients(open_decoder(model), ids)
    for name in ("query", "key", "query_bound", "key_bound"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-4)
    np.testing.assert_allclose(layers_in_parts.query, layers.query, rtol=1e-4)
    assert (parts.loss, parts.sequences, parts.length) == (pytest.approx(whole.loss), 5, 24)


def test_a_bfloat16_model_is_probed_as_it_is() -> None:
    model, ids = make_llama().bfloat16(), tokens()
    probe, exact = gradient_probe(model, ids), gradient_probe(make_llama(), ids)
    np.testing.assert_allclose(probe.query, exact.query, rtol=0.1)  # 8 bits through four layers
    assert (probe.query < probe.query_bound).all() and (probe.key < probe.key_bound).all()


def test_a_folder_is_loaded(stories: Path) -> None:
    probe = gradient_probe(stories, np.tile(np.arange(3, 35), (2, 1)))
    assert probe.query.shape == (5, 8)
    assert (probe.query < probe.query_bound).all() and (probe.key < probe.key_bound).all()


# -- Theorem H.1 (iii) -------------------------------------------------------------------------------------------------


def test_the_bound_worked_out_from_the_plain_model() -> None:
    model, ids = make_gpt2(1, attn_implementation="eager"), tokens()
    probe = gradient_probe(model, ids)
    expected = np.zeros((2, 4))
    for sequence in ids:
        output = model(sequence[None], labels=sequence[None], output_attentions=True, output_hidden_states=True)
        (attention,) = output.attentions
        (upstream,) = torch.autograd.grad(output.loss / len(ids), attention)
        attn, normed = model.transformer.h[0].attn, model.transformer.h[0].ln_1(output.hidden_states[0][0])
        query, key, _ = (part.view(24, 4, 8) for part in attn.c_attn(normed).split(32, dim=-1))
        for head in range(4):
            epsilon = 1 - attention[0, head].detach().numpy().min(axis=0).max()
            common = 2 * epsilon / math.sqrt(8) * float(upstream[0, head].norm()) * spectral(normed)
            expected[:, head] += common * spectral(key[:, head]), common * spectral(query[:, head])
    np.testing.assert_allclose(probe.query_bound[0], expected[0], rtol=1e-4)
    np.testing.assert_allclose(probe.key_bound[0], expected[1], rtol=1e-4)


def spectral(matrix: torch.Tensor) -> float:
    return float(np.linalg.svd(matrix.detach().numpy(), compute_uv=False)[0])


def with_a_sink(strength: float) -> PreTrainedModel:
    """Return a GPT-2 of one layer whose head 0 looks at token 1, the harder the larger `strength`.

    The first coordinate of the residual stream is zero for every token and position but token 1, also after the norm;
    it alone makes the first coordinate of head 0's keys, and the first coordinate of its queries is `strength`.
    """
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=97, n_positions=64, n_embd=32, n_layer=1, n_head=4, attn_pdrop=0.0, embd_pdrop=0.0)
    model = perturbed(GPT2LMHeadModel(config)).double()
    block = model.transformer.h[0]
    with torch.no_grad():
        for table in (model.transformer.wte.weight, model.transformer.wpe.weight):
            table[:, 0] = 0.0
            table[:, 1:] -= table[:, 1:].mean(dim=1, keepdim=True)
        model.transformer.wte.weight[1, 0] = 10.0
        block.ln_1.weight.fill_(1.0)
        block.ln_1.bias.zero_()
        weight, bias = block.attn.c_attn.weight, block.attn.c_attn.bias
        weight[:, [0, 32]] = 0.0
        bias[32] = 0.0
        weight[0, 32] = 1.0
        bias[0] = strength
    return model


def sink_of(model: PreTrainedModel, ids: torch.Tensor) -> float:
    model.config._attn_implementation = "eager"
    with torch.no_grad():
        attention = model(ids, output_attentions=True).attentions[0][:, 0]
    assert (attention[..., 0] > 0.5).all()
    return float(attention[..., 1:].sum(-1).max())


def test_collapse_is_sticky() -> None:
    ids = tokens(4)
    ids[:, 0] = 1
    models = [with_a_sink(strength) for strength in (4.0, 7.0, 10.0, 13.0)]
    probes: list[GradientProbe] = [gradient_probe(model, ids) for model in models]
    epsilons = np.array([sink_of(model, ids) for model in models])
    assert epsilons.min() < 1e-9 and epsilons.max() > 1e-4
    norms, bounds = (np.array([getattr(probe, name)[0, 0] for probe in probes]) for name in ("query", "query_bound"))
    assert (norms < bounds).all() and (norms > 0).all()
    np.testing.assert_allclose(norms / epsilons, norms[-1] / epsilons[-1], rtol=0.05)
    np.testing.assert_allclose(bounds / epsilons, bounds[-1] / epsilons[-1], rtol=0.15)  # it adds up each sequence's
    # The queries grow with the strength, and so do the keys' gradient and bound, beside the fall with eps.
    keys, key_bounds = (np.array([getattr(probe, name)[0, 0] for probe in probes]) for name in ("key", "key_bound"))
    assert (keys < key_bounds).all() and (np.diff(key_bounds) < 0).all() and (np.diff(keys) < 0).all()
    others = np.array([probe.query[0, 1:] for probe in probes])
    assert (others > 1e3 * norms[-1]).all()


def test_the_bound_holds_where_float32_cannot_tell_a_row_from_one() -> None:
    ids = tokens(4)
    ids[:, 0] = 1
    probe = gradient_probe(with_a_sink(14.0).float(), ids)
    assert 0 < probe.query[0, 0] < probe.query_bound[0, 0] < 1e-8


# -- What is left behind, and what is refused --------------------------------------------------------------------------


def portrait(model: PreTrainedModel) -> dict[str, Any]:
    """Return everything of a model that a probe could leave changed."""
    return {
        "grad": [None if p.grad is None else (id(p.grad), p.grad.sum().item()) for p in model.parameters()],
        "requires": [p.requires_grad for p in model.parameters()],
        "weights": [p.sum().item() for p in model.parameters()],
        "training": [module.training for module in model.modules()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()],
        "implementation": model.config._attn_implementation,
        "dtype": model.dtype,
        "random": torch.get_rng_state().tolist(),
        "grad mode": torch.is_grad_enabled(),
    }


def used(layers: int = 2) -> PreTrainedModel:
    """Return a model in the middle of its life: some weights frozen, some gradients there, some modules training."""
    model = make_gpt2(layers)
    model.train()
    model.transformer.h[0].eval()
    model.transformer.wte.weight.requires_grad_(False)
    model.transformer.h[1].attn.c_attn.weight.grad = torch.ones_like(model.transformer.h[1].attn.c_attn.weight)
    return model


@pytest.mark.parametrize("inside", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_the_model_comes_back_untouched(inside: Any) -> None:
    model = used()
    before = portrait(model)
    with inside():
        gradient_probe(model, tokens())
        layer_gradients(open_decoder(model), tokens())
    assert portrait(model) == before


def test_the_model_comes_back_untouched_after_an_error() -> None:
    model = used()

    def fail(*_: Any) -> None:
        raise RuntimeError("out of power")

    handle = model.transformer.h[1].mlp.register_forward_hook(fail)
    before = portrait(model)
    with pytest.raises(RuntimeError, match="out of power"):
        gradient_probe(model, tokens())
    assert portrait(model) == before
    handle.remove()


def test_frozen_weights_are_probed_all_the_same() -> None:
    free, frozen = make_llama(), make_llama().requires_grad_(False)
    np.testing.assert_array_equal(gradient_probe(frozen, tokens()).key, gradient_probe(free, tokens()).key)


@pytest.mark.parametrize(("family", "settings"), [("bloom", {}), ("falcon", {}), ("gptj", {"rotary_dim": 4})])
def test_a_family_that_cannot_be_followed_says_so(family: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"cannot probe the gradients of \w+ForCausalLM: none of its layers uses"):
        gradient_probe(build(family, **settings), tokens())


def test_bad_input_is_refused() -> None:
    model = make_gpt2(1)
    with pytest.raises(DataError, match="T = 1"):
        gradient_probe(model, tokens(length=1))
    with pytest.raises(DataError, match="65 tokens"):
        gradient_probe(model, tokens(length=65))
    with pytest.raises(ModelError, match="the model is a dict"):
        gradient_probe({}, tokens())  # type: ignore[arg-type]
    model.transformer.h[0].mlp.c_fc.weight.data[0, 0] = torch.nan
    with pytest.raises(ModelError, match=r"layer 0 .* NaN"):
        gradient_probe(model, tokens())
