"""How probabilities are captured: by hand, in small pieces, leaving no trace; more in test_spectra_families.py."""

from __future__ import annotations

import gc
import hashlib
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import spectra_families
import torch
from spectra_families import build, captured
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from inheritune.decoder import open_decoder
from inheritune.errors import ModelError
from inheritune.spectra.gradients import layer_gradients
from inheritune.spectra.measure.pieces import Piece
from inheritune.spectra.watch import capture
from inheritune.spectra.watch.attention import _own_eager
from inheritune.spectra.watch.capture import visit_attention
from tiny import make_gpt2, make_llama


def tokens(sequences: int = 3, length: int = 24) -> torch.Tensor:
    return spectra_families.tokens(sequences, length)


@contextmanager
def eager_calls(model: PreTrainedModel) -> Iterator[list[dict[str, torch.Tensor]]]:
    """Record, call by call, what the model's own eager function mixes, and what comes of it."""
    calls: list[dict[str, torch.Tensor]] = []

    def record(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
        own = _own_eager(module)
        output, weights = own(module, query, key, value, mask, **options)
        repeated = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)
        calls.append({"output": output, "value": repeated})
        return output, weights

    AttentionInterface.register("test_recorder", record)
    AttentionMaskInterface.register("test_recorder", eager_mask)
    model.config._attn_implementation = "test_recorder"
    yield calls


def test_inverse_layer_scaling_changes_only_later_layers_logits() -> None:
    plain, scaled = (make_gpt2(scale_attn_by_inverse_layer_idx=flag) for flag in (False, True))
    a, b = (captured(model, tokens(), "causal") for model in (plain, scaled))
    assert torch.equal(a["causal", 0], b["causal", 0])
    assert (a["causal", 3] - b["causal", 3]).abs().max() > 0.05


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
    with torch.no_grad():
        for block in model.model.layers:
            block.self_attn.q_proj.weight *= 0.2  # so that few rows have nothing left for the sink
    found = captured(model, ids, "causal")
    with eager_calls(model) as calls, torch.no_grad():
        model(ids, use_cache=False)
    for layer, call in enumerate(calls):
        ours = found["causal", layer]
        assert ours.sum(-1).median() < 0.99
        mixed = (ours @ call["value"]).transpose(1, 2)
        torch.testing.assert_close(mixed, call["output"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt_oss", "gpt_neo"])
def test_small_pieces_give_the_same_probabilities(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = build(family), tokens(5)
    whole = captured(model, ids, "causal")
    pieces: list[Piece] = []
    monkeypatch.setattr(capture, "CHUNK_BYTES", 1)
    memory = 3 * 10 * 4 * 24 * 24  # three matrices and the work on them
    visit_attention(open_decoder(model), ids, ["causal"], pieces.append, memory=memory)
    assert {tuple(piece.probabilities.shape[:2]) for piece in pieces} == {(1, 3), (1, 1)}
    for piece in pieces:
        ours = piece.probabilities
        theirs = whole["causal", piece.layer][piece.sequence, piece.head : piece.head + ours.shape[1]]
        torch.testing.assert_close(ours[0], theirs, rtol=0, atol=1e-6)
    assert sum(piece.probabilities.shape[1] for piece in pieces) == 2 * 5 * 4


@pytest.mark.parametrize("family", ["llama", "gptj"])
def test_no_piece_is_larger_than_its_memory(family: str) -> None:
    sizes: list[int] = []
    visit_attention(
        open_decoder(build(family)),
        tokens(9),
        ["full"],
        lambda piece: sizes.append(piece.probabilities.nbytes),
        memory=100_000,
    )
    assert max(sizes) <= 100_000 / 6
    assert sum(sizes) == 2 * 9 * 4 * 24 * 24 * 4


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


def test_overflow_in_the_forward_pass_names_the_layer() -> None:
    model = make_llama()
    with torch.no_grad():
        model.model.layers[2].input_layernorm.weight.fill_(1e30)
    with pytest.raises(ModelError, match="attention of layer 2 of LlamaForCausalLM is not finite"):
        captured(model, tokens(), "causal")


def test_nothing_keeps_the_model_alive_afterwards() -> None:
    model = make_llama()
    captured(model, tokens(), "causal", "full")
    layer_gradients(open_decoder(model), tokens())
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None
