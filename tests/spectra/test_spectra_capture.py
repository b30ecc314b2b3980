"""Captured probabilities against the models' own eager attention, and against logits computed by hand."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AttentionInterface, AutoModelForCausalLM, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from inheritune.decoder import open_decoder
from inheritune.errors import ModelError
from inheritune.spectra import capture, interface
from inheritune.spectra.attention import _own_eager
from inheritune.spectra.capture import visit_attention
from inheritune.spectra.probe import Piece
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
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
THROUGH_INTERFACE: dict[str, dict[str, Any]] = {
    "biogpt": {},
    "cohere2": {"sliding_window": 8, "head_dim": 8},
    "gemma2": {"sliding_window": 8, "head_dim": 8, "attn_logit_softcapping": 2.0},
    "gemma3_text": {"sliding_window": 8, "head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "gpt_bigcode": {},
    "gpt_neox": {},
    "gpt_oss": EXPERTS | {"sliding_window": 8, "head_dim": 8},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "mistral": {"sliding_window": 8, "head_dim": 8},
    "mixtral": EXPERTS | {"head_dim": 8},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "phi": {},
    "qwen3": {"head_dim": 8},
    "stablelm": {},
}
BY_HOOK: dict[str, dict[str, Any]] = {
    "bloom": {},
    "codegen": {"rotary_dim": 4},
    "falcon": {},
    "falcon (alibi)": {"alibi": True},
    "falcon (new)": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "gpt_neo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 8},
    "gptj": {"rotary_dim": 4},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64},
    "xglm": {"d_model": 32, "ffn_dim": 64, "attention_heads": 4, "num_layers": 2},
}
Captured = dict[tuple[str, int], torch.Tensor]


def build(family: str) -> PreTrainedModel:
    settings = SMALL | THROUGH_INTERFACE.get(family, {}) | BY_HOOK.get(family, {})
    torch.manual_seed(0)
    return perturbed(AutoModelForCausalLM.from_config(CONFIG_MAPPING[family.split()[0]](**settings)))


def tokens(sequences: int = 3, length: int = 24) -> torch.Tensor:
    return torch.randint(3, 97, (sequences, length), generator=torch.Generator().manual_seed(0))


def captured(model: PreTrainedModel, ids: torch.Tensor, *masks: str) -> Captured:
    """Return the probabilities (N, H, T, T) for each (mask, layer), every place filled exactly once."""
    pieces: list[Piece] = []
    visit_attention(open_decoder(model), ids, masks, pieces.append)
    heads: dict[tuple[str, int], int] = {}
    for piece in pieces:
        key = (piece.mask, piece.layer)
        heads[key] = max(heads.get(key, 0), piece.head + piece.probabilities.shape[1])
    length = ids.shape[1]
    found = {key: torch.full((len(ids), count, length, length), torch.nan) for key, count in heads.items()}
    for piece in pieces:
        rows, columns = piece.probabilities.shape[:2]
        place = found[piece.mask, piece.layer][
            piece.sequence : piece.sequence + rows, piece.head : piece.head + columns
        ]
        assert place.isnan().all()
        place.copy_(piece.probabilities)
    assert not any(tensor.isnan().any() for tensor in found.values())
    return found


def eager_weights(model: PreTrainedModel, ids: torch.Tensor) -> list[torch.Tensor]:
    """Return what the model itself reports, for the layers that have attention."""
    model.config._attn_implementation = "eager"
    with torch.no_grad():
        attentions = model(ids, output_attentions=True, use_cache=False).attentions
    return [weights for weights in attentions if weights is not None]


@contextmanager
def eager_calls(model: PreTrainedModel) -> Iterator[list[dict[str, torch.Tensor]]]:
    """Record, call by call, what the model's own eager function gives with its mask and without."""
    calls: list[dict[str, torch.Tensor]] = []

    def record(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
        own = _own_eager(module)
        output, weights = own(module, query, key, value, mask, **options)
        full = own(module, query, key, value, None, **options)[1]
        repeated = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)
        calls.append({"output": output, "weights": weights, "full": full, "value": repeated})
        return output, weights

    AttentionInterface.register("test_recorder", record)
    AttentionMaskInterface.register("test_recorder", eager_mask)
    model.config._attn_implementation = "test_recorder"
    yield calls


@pytest.mark.parametrize("family", [*THROUGH_INTERFACE, *BY_HOOK])
def test_causal_probabilities_are_the_models_own(family: str) -> None:
    model, ids = build(family), tokens()
    found = list(captured(model, ids, "causal").values())
    expected = eager_weights(model, ids)
    assert len(found) == len(expected) > 0
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("scaled", [False, True])
def test_gpt2_with_and_without_inverse_layer_scaling(scaled: bool) -> None:
    model, ids = make_gpt2(scale_attn_by_inverse_layer_idx=scaled), tokens()
    found = captured(model, ids, "causal")
    for layer, theirs in enumerate(eager_weights(model, ids)):
        torch.testing.assert_close(found["causal", layer], theirs, rtol=0, atol=1e-6)


def test_inverse_layer_scaling_changes_only_later_layers_logits() -> None:
    plain, scaled = (make_gpt2(scale_attn_by_inverse_layer_idx=flag) for flag in (False, True))
    a, b = (captured(model, tokens(), "causal") for model in (plain, scaled))
    assert torch.equal(a["causal", 0], b["causal", 0])
    assert (a["causal", 3] - b["causal", 3]).abs().max() > 0.05


@pytest.mark.parametrize("family", sorted(THROUGH_INTERFACE))
def test_full_is_the_models_own_function_without_a_mask(family: str) -> None:
    model, ids = build(family), tokens()
    found = [value for (mask, _), value in captured(model, ids, "causal", "full").items() if mask == "full"]
    with eager_calls(model) as calls, torch.no_grad():
        model(ids, use_cache=False)
    assert len(found) == len(calls) > 0
    for ours, call in zip(found, calls, strict=True):
        torch.testing.assert_close(ours, call["full"], rtol=0, atol=1e-6)
        assert (ours.triu(1) > 0).any()


def test_full_by_hand_from_the_weights_of_gpt2() -> None:
    model, ids = make_gpt2(scale_attn_by_inverse_layer_idx=True), tokens()
    found = captured(model, ids, "causal", "full")
    with torch.no_grad():
        hidden = model(ids, output_hidden_states=True).hidden_states
        for layer, block in enumerate(model.transformer.h):
            normed = block.ln_1(hidden[layer]).double()
            projected = normed @ block.attn.c_attn.weight.double() + block.attn.c_attn.bias.double()
            query, key, _ = (part.view(3, 24, 4, 8).transpose(1, 2) for part in projected.split(32, dim=-1))
            logits = query @ key.mT / 8**0.5 / (layer + 1)
            hidden_keys = torch.ones(24, 24, dtype=torch.bool).triu(1)
            causal = logits.masked_fill(hidden_keys, -torch.inf).softmax(-1)
            torch.testing.assert_close(found["full", layer].double(), logits.softmax(-1), rtol=0, atol=2e-6)
            torch.testing.assert_close(found["causal", layer].double(), causal, rtol=0, atol=2e-6)


@pytest.mark.parametrize("family", ["gpt_oss", "granite_swa"])
def test_sinks_take_their_share_of_what_mixes_the_values(family: str) -> None:
    model, ids = build(family), tokens()
    found = captured(model, ids, "causal")
    with eager_calls(model) as calls, torch.no_grad():
        model(ids, use_cache=False)
    for layer, call in enumerate(calls):
        ours = found["causal", layer]
        assert ours.sum(-1).max() < 0.999
        mixed = (ours @ call["value"]).transpose(1, 2)
        torch.testing.assert_close(mixed, call["output"], rtol=0, atol=1e-5)


def test_probabilities_of_a_bfloat16_model_are_float32() -> None:
    model, ids = make_llama().bfloat16(), tokens()
    found = captured(model, ids, "causal")
    for layer, theirs in enumerate(eager_weights(model, ids)):
        ours = found["causal", layer]
        torch.testing.assert_close(ours.sum(-1), torch.ones(3, 4, 24), rtol=0, atol=1e-6)
        assert (ours - theirs.float()).abs().max() < 0.05  # bfloat16 carries 8 bits through the layers


@pytest.mark.parametrize("family", ["gpt_oss", "gpt_neo"])
def test_small_pieces_give_the_same_probabilities(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = build(family), tokens(5)
    whole = captured(model, ids, "causal")
    sizes: list[tuple[int, ...]] = []
    monkeypatch.setattr(interface, "PIECE_BYTES", 3 * 4 * 24 * 24 * 3)
    monkeypatch.setattr(capture, "PIECE_BYTES", 1)
    visit_attention(
        open_decoder(model), ids, ["causal"], lambda piece: sizes.append(tuple(piece.probabilities.shape[:2]))
    )
    expected = {(1, 4)} if family == "gpt_neo" else {(1, 3), (1, 1)}
    assert set(sizes) == expected
    for key, ours in captured(model, ids, "causal").items():
        torch.testing.assert_close(ours, whole[key], rtol=0, atol=1e-6)


def test_no_piece_is_larger_than_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interface, "PIECE_BYTES", 100_000)
    sizes: list[int] = []
    visit_attention(
        open_decoder(make_llama()), tokens(9), ["full"], lambda piece: sizes.append(piece.probabilities.nbytes)
    )
    assert max(sizes) <= 100_000 / 3
    assert sum(sizes) == 4 * 9 * 4 * 24 * 24 * 4


def fingerprint(model: PreTrainedModel) -> tuple[Any, ...]:
    """Return everything that watching a model might disturb."""
    state = hashlib.sha256()
    for name, value in model.state_dict().items():
        state.update(name.encode() + value.float().numpy().tobytes())
    hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
    modes = tuple(module.training for module in model.modules())
    return state.hexdigest(), hooks, modes, model.config._attn_implementation, model.config.to_json_string()


@pytest.mark.parametrize("family", ["qwen3", "gemma3_text", "falcon"])
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_comes_back_as_it_was(family: str, fails: bool) -> None:
    model = build(family)
    model.train()
    open_decoder(model).blocks[1].eval()
    before = fingerprint(model)
    grads = torch.is_grad_enabled()

    def consume(piece: Piece) -> None:
        if fails and piece.layer == 1:
            raise RuntimeError("on purpose")

    if fails:
        with pytest.raises(RuntimeError, match="on purpose"):
            visit_attention(open_decoder(model), tokens(), ["causal"], consume)
    else:
        visit_attention(open_decoder(model), tokens(), ["causal"], consume)
    assert fingerprint(model) == before
    assert torch.is_grad_enabled() == grads
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("family", sorted(BY_HOOK))
def test_full_is_refused_by_name_where_logits_cannot_be_seen(family: str) -> None:
    model = build(family)
    name = type(model).__name__
    with pytest.raises(ModelError, match=f'{name} .*interface.*use mask="causal"'):
        captured(model, tokens(), "causal", "full")


def test_full_is_refused_where_the_mask_carries_a_bias() -> None:
    model = build("doge")
    with pytest.raises(ModelError, match=r'DogeForCausalLM .*bias.*use mask="causal"'):
        captured(model, tokens(), "full")
    assert len(captured(model, tokens(), "causal")) == 2


def test_a_family_with_attention_of_its_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.llama import modeling_llama

    own: Callable[..., Any] = modeling_llama.eager_attention_forward

    def twice(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
        return own(module, 1.01 * query, key, value, mask, **options)

    monkeypatch.setattr(modeling_llama, "eager_attention_forward", twice)
    with pytest.raises(ModelError, match="LlamaForCausalLM: layer 0 computes attention in a way of its own"):
        captured(make_llama(), tokens(), "causal")


def test_models_without_causal_attention_are_refused_by_name() -> None:
    mamba = {"num_heads": 8, "head_dim": 8, "state_size": 4, "n_groups": 1, "vocab_size": 97}
    config = CONFIG_MAPPING["mamba2"](hidden_size=32, num_hidden_layers=2, **mamba)
    with pytest.raises(ModelError, match="Mamba2ForCausalLM: none of its layers"):
        captured(AutoModelForCausalLM.from_config(config), tokens(), "causal")
    with pytest.raises(ModelError, match="BertLMHeadModel attends to later tokens"):
        captured(build("bert"), tokens(), "causal")


def test_overflow_in_the_forward_pass_names_the_layer() -> None:
    model = make_llama()
    with torch.no_grad():
        model.model.layers[2].input_layernorm.weight.fill_(1e30)
    with pytest.raises(ModelError, match="attention of layer 2 of LlamaForCausalLM is not finite"):
        captured(model, tokens(), "causal")
