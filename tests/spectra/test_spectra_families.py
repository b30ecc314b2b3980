"""Captured probabilities of many families against the models' own eager attention, and against their own logits."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from spectra_families import (
    BY_HOOK,
    FAMILIES,
    HYBRIDS,
    THROUGH_INTERFACE,
    WINDOWED,
    Captured,
    T,
    build,
    captured,
    sharpened,
    source,
    tokens,
)
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from inheritune import analyze
from inheritune.decoder import open_decoder
from inheritune.errors import ModelError
from tiny import make_llama

TOLERANCE = 2e-6
WITHOUT_ALIBI = sorted(name for name, family in BY_HOOK.items() if not family.alibi)
DOUBLED = "falcon (alibi)"
"""transformers 5.23 adds Falcon's ALiBi twice in eager attention (through the mask too), and once under SDPA."""


def layers(found: Captured, mask: str = "causal") -> dict[int, torch.Tensor]:
    return {layer: probabilities for (kind, layer), probabilities in found.items() if kind == mask}


@torch.no_grad()
def eager(model: PreTrainedModel, ids: torch.Tensor, attention: tuple[int, ...]) -> dict[int, torch.Tensor]:
    """Return what the model itself reports under eager attention, (N, H, T, T) for each layer with attention."""
    before = model.config._attn_implementation
    model.config._attn_implementation = "eager"
    try:
        weights = model(ids, output_attentions=True, use_cache=False).attentions
    finally:
        model.config._attn_implementation = before
    if len(weights) == 2 * len(attention):  # LongCat-Flash: two attention sublayers in each block
        pairs = zip(weights[::2], weights[1::2], strict=True)
        weights = [torch.cat(pair, dim=1) for pair in pairs] if weights[0].shape[-1] == T else weights
    if len(weights) == open_decoder(model).layers:
        return {layer: weights[layer] for layer in attention}
    return dict(zip(attention, [item for item in weights if item is not None], strict=True))


def without_mask(model: PreTrainedModel, ids: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Return, call by call of a causal pass, what the family's own eager function gives for a mask of 0."""
    full: list[torch.Tensor] = []

    def recorder(own: Callable[..., Any]) -> Callable[..., Any]:
        def record(
            module: Any, query: Any, key: Any, value: Any, attention_mask: Any = None, *args: Any, **kw: Any
        ) -> Any:
            full.append(own(module, query, key, value, torch.zeros_like(attention_mask), *args, **kw)[1])
            return own(module, query, key, value, attention_mask, *args, **kw)

        return record

    homes = {type(module).__module__ for module in model.modules()}
    with monkeypatch.context() as patch, torch.no_grad():
        for home in homes:
            own = getattr(sys.modules[home], "eager_attention_forward", None)
            if own is not None:
                patch.setattr(sys.modules[home], "eager_attention_forward", recorder(own))
        patch.setattr(model.config, "_attn_implementation", "eager")
        model(ids, use_cache=False)
    return full


Logits = list[tuple[torch.Tensor, torch.Tensor]]
"""Scaled queries and keys of each layer, float64."""


def own_queries_and_keys(model: PreTrainedModel, ids: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> Logits:
    """Return the queries and keys of an ordinary pass of a family that keeps them inside its attention modules."""
    found: Logits = []
    fused, family = torch.nn.functional.scaled_dot_product_attention, model.config.model_type

    def note(query: torch.Tensor, key: torch.Tensor, scale: float) -> None:
        found.append((query.double() * scale, key.double()))

    def record_fused(query: Any, key: Any, *args: Any, **kw: Any) -> Any:
        note(query, key, query.shape[-1] ** -0.5)
        return fused(query, key, *args, **kw)

    def recorder(own: Callable[..., Any]) -> Callable[..., Any]:
        def record(query: Any, key: Any, *args: Any) -> Any:
            scale = 1.0 if family == "gpt_neo" else query.shape[-1] ** -0.5
            note(query, key.mT if family == "openai-gpt" else key, scale)
            return own(query, key, *args)

        return record

    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", record_fused)
        for module in model.modules():
            if hasattr(module, "_attn"):
                patch.setattr(module, "_attn", recorder(module._attn))
        if family == "xglm":
            return projections(model, ids)
        model(ids, use_cache=False)
    return found


def projections(model: PreTrainedModel, ids: torch.Tensor) -> Logits:
    """Return XGLM's queries and keys, which its attention takes from their projections as they are."""
    kept: list[torch.Tensor] = []

    def keep(module: nn.Module, args: Any, output: torch.Tensor) -> None:
        kept.append(output.view(*output.shape[:2], 4, -1).transpose(1, 2))

    found = [part for layer in model.model.layers for part in (layer.self_attn.q_proj, layer.self_attn.k_proj)]
    handles = [part.register_forward_hook(keep) for part in found]
    model(ids, use_cache=False)
    for handle in handles:
        handle.remove()
    # The model scales before it multiplies, and rounds then.
    return [((q * q.shape[-1] ** -0.5).double(), k.double()) for q, k in zip(kept[::2], kept[1::2], strict=True)]


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != DOUBLED])
def test_causal_probabilities_are_the_models_own(name: str) -> None:
    model, ids = source(name), tokens()
    assert model.config._attn_implementation != "inheritune_probe"
    found = layers(captured(model, ids, "causal"))
    attention = FAMILIES[name].attention
    assert tuple(found) == attention
    expected = eager(model, ids, attention)
    for layer, ours in found.items():
        torch.testing.assert_close(ours, expected[layer], rtol=0, atol=TOLERANCE)
        assert ours[:, :, 1:].max() > 0.5, "attention is near uniform: it would not tell one softmax from another"


def test_enough_families_are_covered() -> None:
    assert len({family.model_type or name for name, family in FAMILIES.items()}) >= 45
    assert len(HYBRIDS) >= 4


def test_heads_that_mix_two_halves_of_the_values_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = build("diffllama"), tokens()
    found = layers(captured(model, ids, "full"), "full")
    calls = without_mask(model, ids, monkeypatch)
    assert len(calls) == 2 * len(found)
    for ours, first, second in zip(found.values(), calls[::2], calls[1::2], strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=TOLERANCE)
        torch.testing.assert_close(ours, first, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", [*THROUGH_INTERFACE, *HYBRIDS])
def test_full_is_the_families_own_softmax_without_a_mask(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = source(name), tokens()
    found = layers(captured(model, ids, "causal", "full"), "full")
    calls = without_mask(model, ids, monkeypatch)
    if len(calls) == 2 * len(found):  # LongCat-Flash
        calls = [torch.cat(pair, dim=1) for pair in zip(calls[::2], calls[1::2], strict=True)]
    assert len(calls) == len(found)
    for ours, theirs in zip(found.values(), calls, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)
        assert (ours.triu(1).sum(-1) > 0.3).any()


@pytest.mark.parametrize("name", WITHOUT_ALIBI)
def test_full_of_a_hooked_family_is_the_softmax_of_its_queries_and_keys(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, ids = source(name), tokens()
    found = layers(captured(model, ids, "causal", "full"), "full")
    expected = own_queries_and_keys(model, ids, monkeypatch)
    assert len(expected) == len(found) == 2
    for ours, (query, key) in zip(found.values(), expected, strict=True):
        theirs = (query @ key.mT).softmax(-1)
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=TOLERANCE)
        assert (ours.triu(1).sum(-1) > 0.3).any()


def test_falcon_with_alibi_is_read_as_sdpa_computes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = source(DOUBLED), tokens()
    found = layers(captured(model, ids, "causal"))
    slopes = torch.tensor([2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8], dtype=torch.float64)  # of 4 heads: 2^(-8 h / 4)
    bias = slopes[:, None, None] * torch.arange(T) / 8**0.5
    hidden = torch.ones(T, T, dtype=torch.bool).triu(1)
    for ours, (query, key) in zip(found.values(), own_queries_and_keys(model, ids, monkeypatch), strict=True):
        theirs = (query @ key.mT + bias).masked_fill(hidden, -torch.inf).softmax(-1)
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", sorted(name for name, family in FAMILIES.items() if family.alibi))
def test_full_is_refused_where_alibi_would_draw_every_token_to_the_last(name: str) -> None:
    with pytest.raises(ModelError, match=r'^\w+ForCausalLM adds a bias .*\(ALiBi\).*use mask="causal"') as caught:
        captured(source(name), tokens(), "causal", "full")
    assert "\n" not in str(caught.value)


def test_full_is_refused_where_a_module_hides_tokens_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("gptj")
    for block in model.transformer.h:
        own = block.attn._attn

        def hide(query: Any, key: Any, value: Any, mask: Any, own: Any = own) -> Any:
            return own(query, key, value, torch.full(2 * query.shape[-2:-1], -1e4).triu(1))

        monkeypatch.setattr(block.attn, "_attn", hide)
    with pytest.raises(ModelError, match="GPTJForCausalLM hides later tokens inside its attention modules"):
        captured(model, tokens(), "full")


@pytest.mark.parametrize("name", WINDOWED)
def test_windows_hide_what_lies_before_them(name: str) -> None:
    model, layer = source(name), WINDOWED[name]
    found = captured(model, tokens(), "causal", "full")
    assert (found["causal", layer][:, :, -1, 0] == 0).all()
    assert (found["full", layer][:, :, -1, 0] > 0).all()


def test_sinks_take_their_share_of_every_row() -> None:
    model, ids = build("gpt_oss"), tokens()
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight *= 0.2  # so that few rows have nothing left for the sink
    before = captured(model, ids, "causal", "full")
    with torch.no_grad():
        model.model.layers[0].self_attn.sinks += math.log(3)
    after = captured(model, ids, "causal", "full")
    for mask in ("causal", "full"):
        one, three = before[mask, 0].double(), after[mask, 0].double()
        kept, less = one.sum(-1), three.sum(-1)
        plain = (kept > 0.01) & (kept < 0.99)
        assert kept.max() <= 1 + 1e-6
        assert plain.float().mean() > 0.5
        torch.testing.assert_close((1 / less - 1)[plain], 3 * (1 / kept - 1)[plain], rtol=1e-3, atol=0)  # sink's odds
        torch.testing.assert_close((three / less[..., None])[plain], (one / kept[..., None])[plain], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["qwen3_next", "lfm2", "jamba", "zamba2", "granitemoehybrid", "nemotron_h", "gpt_neo"])
def test_analysis_names_the_layers_that_have_attention(name: str) -> None:
    result = analyze(source(name), tokens(3).numpy())
    assert tuple(result.layers_index) == FAMILIES[name].attention
    assert result.rank.shape == (len(FAMILIES[name].attention), 4)


def test_the_shared_attention_of_zamba2_is_read_in_each_of_its_layers() -> None:
    model = source("zamba2")
    one, two = (model.model.layers[layer].shared_transformer.self_attn for layer in (1, 3))
    assert one.q_proj.weight is two.q_proj.weight or torch.equal(one.q_proj.weight, two.q_proj.weight)
    found = captured(model, tokens(), "causal")
    assert (found["causal", 1] - found["causal", 3]).abs().max() > 0.1


def without_attention(model_type: str, **settings: Any) -> PreTrainedModel:
    config = CONFIG_MAPPING[model_type](vocab_size=97, hidden_size=32, num_hidden_layers=2, **settings)
    return sharpened(AutoModelForCausalLM.from_config(config))


@pytest.mark.parametrize(
    ("model_type", "name", "settings"),
    [
        ("mamba", "MambaForCausalLM", {"state_size": 4}),
        ("mamba2", "Mamba2ForCausalLM", {"num_heads": 8, "head_dim": 8, "state_size": 4, "n_groups": 1}),
        ("rwkv", "RwkvForCausalLM", {"attention_hidden_size": 32}),
    ],
)
def test_a_model_without_attention_is_refused_by_name(model_type: str, name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=f"^cannot analyse {name}: none of its layers computes or returns attention"):
        captured(without_attention(model_type, **settings), tokens(), "causal")


def test_an_encoder_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match=r"^BertLMHeadModel attends to later tokens"):
        model = without_attention("bert", num_attention_heads=4, intermediate_size=48, pad_token_id=0)
        captured(model, tokens(), "causal")


def test_a_model_that_is_recurrent_in_depth_is_refused_by_name() -> None:
    model = make_llama(2)
    model.model.layers = nn.ModuleList([model.model.layers[0]] * 2)
    with pytest.raises(ModelError, match=r"^cannot analyse LlamaForCausalLM: it runs layer 0 more than once"):
        captured(model, tokens(), "causal")


@pytest.mark.parametrize("name", ["llama", "qwen3", "granite", "starcoder2"])
def test_a_bfloat16_model_is_read_in_float32(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = build(name).bfloat16(), tokens()
    seen: list[torch.Tensor] = []
    home = sys.modules[type(model).__module__]
    own = home.eager_attention_forward

    def record(module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float, **kw: Any) -> Any:
        assert query.dtype == key.dtype == torch.bfloat16
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        seen.append(query.double() @ key.double().mT * scaling)
        return own(module, query, key[:, :: query.shape[1] // value.shape[1]], value, mask, scaling=scaling, **kw)

    found = captured(model, ids, "causal", "full")
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(home, "eager_attention_forward", record)
        model.set_attn_implementation("eager")
        model(ids, use_cache=False)
    # Only the first layer's inputs are the same to the bit: eager attention rounds its probabilities to bfloat16.
    position = torch.arange(T)
    hidden = position[:, None] < position
    if name == "starcoder2":
        hidden |= position[:, None] - position >= model.config.sliding_window
    causal = seen[0].masked_fill(hidden, -torch.inf).softmax(-1)
    for mask, theirs in (("causal", causal), ("full", seen[0].softmax(-1))):
        assert found[mask, 0].dtype == torch.float32
        torch.testing.assert_close(found[mask, 0].double(), theirs, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", WITHOUT_ALIBI)
def test_a_hooked_bfloat16_model_is_read_in_float32(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = build(name).bfloat16(), tokens()
    found = captured(model, ids, "causal", "full")
    expected = own_queries_and_keys(model, ids, monkeypatch)
    for layer, (query, key) in enumerate(expected):
        logits = query @ key.mT
        torch.testing.assert_close(found["full", layer].double(), logits.softmax(-1), rtol=0, atol=TOLERANCE)
        seen = found["causal", layer] > 0
        causal = logits.masked_fill(~seen, -torch.inf).softmax(-1)
        torch.testing.assert_close(found["causal", layer].double(), causal, rtol=0, atol=TOLERANCE)
