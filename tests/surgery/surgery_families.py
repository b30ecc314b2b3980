"""Tiny random models of many families, each with weights off every symmetric point; and hashes of their weights."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

DEPTH = 4
_TOKENS = {"vocab_size": 97, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
_COMMON = {
    **_TOKENS,
    "hidden_size": 32,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
_GQA = {**_COMMON, "num_key_value_heads": 2}
_WINDOWS = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


@dataclass(frozen=True)
class Family:
    """How to build a tiny model, and where its final norm is (for an oracle that does not use our view)."""

    settings: dict[str, Any]
    norm: str = "model.norm"
    logits: Callable[[torch.Tensor, Any], torch.Tensor] = field(default=lambda logits, config: logits)


def _softcap(logits: torch.Tensor, config: Any) -> torch.Tensor:
    cap = config.final_logit_softcapping
    return torch.tanh(logits / cap) * cap


FAMILIES: dict[str, Family] = {
    "gpt2": Family({**_TOKENS, "n_embd": 32, "n_layer": DEPTH, "n_head": 4, "n_positions": 64}, "transformer.ln_f"),
    "llama": Family(_GQA),
    "mistral": Family({**_GQA, "sliding_window": 5}),
    "qwen2": Family({**_GQA, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}),
    "qwen3": Family({**_GQA, "head_dim": 8, "layer_types": _WINDOWS, "sliding_window": 5, "use_sliding_window": True}),
    "gemma2": Family({**_GQA, "head_dim": 8, "sliding_window": 5, "layer_types": _WINDOWS}, logits=_softcap),
    "gemma3_text": Family({**_GQA, "head_dim": 8, "sliding_window": 5, "layer_types": _WINDOWS}),
    "gpt_neox": Family({**_COMMON, "tie_word_embeddings": False}, "gpt_neox.final_layer_norm"),
    "gpt_neo": Family(
        {
            **_TOKENS,
            "hidden_size": 32,
            "num_layers": DEPTH,
            "num_heads": 4,
            "max_position_embeddings": 64,
            "window_size": 5,
            "attention_types": [[["global", "local"], 2]],
        },
        "transformer.ln_f",
    ),
    "gptj": Family(
        {**_TOKENS, "n_embd": 32, "n_layer": DEPTH, "n_head": 4, "n_positions": 64, "rotary_dim": 4}, "transformer.ln_f"
    ),
    "opt": Family(
        {
            **_TOKENS,
            "hidden_size": 32,
            "num_hidden_layers": DEPTH,
            "num_attention_heads": 4,
            "ffn_dim": 48,
            "max_position_embeddings": 64,
            "word_embed_proj_dim": 32,
        },
        "model.decoder.final_layer_norm",
    ),
    "falcon": Family({**_TOKENS, **_COMMON, "multi_query": True, "ffn_hidden_size": 48}, "transformer.ln_f"),
    "bloom": Family({**_TOKENS, "hidden_size": 32, "n_layer": DEPTH, "n_head": 4}, "transformer.ln_f"),
    "mpt": Family({**_TOKENS, "d_model": 32, "n_layers": DEPTH, "n_heads": 4, "max_seq_len": 64}, "transformer.norm_f"),
    "phi": Family(_COMMON, "model.final_layernorm"),
    "phi3": Family(_GQA),
    "olmo2": Family(_GQA),
    "cohere": Family(_GQA, logits=lambda logits, config: logits * config.logit_scale),
    "starcoder2": Family({**_GQA, "sliding_window": None}),
    "stablelm": Family(_GQA),
    "smollm3": Family({**_GQA, "no_rope_layers": [1, 0, 1, 0]}),
    "mixtral": Family({**_GQA, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2_moe": Family({**_GQA, **_MOE, "decoder_sparse_step": 2, "shared_expert_intermediate_size": 16}),
    "deepseek_v3": Family(
        {
            **_COMMON,
            "num_key_value_heads": 4,
            "first_k_dense_replace": 2,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
            "moe_intermediate_size": 16,
            "q_lora_rank": 8,
            "kv_lora_rank": 8,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 4,
            "v_head_dim": 8,
        }
    ),
    "gpt_oss": Family({**_GQA, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 5}),
}


@functools.cache
def source(name: str) -> PreTrainedModel:
    """Return the one tiny model of a family; tests must not change it."""
    torch.manual_seed(7)
    config = CONFIG_MAPPING[name](**FAMILIES[name].settings)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return model


def tokens(length: int = 12, batch: int = 2) -> torch.Tensor:
    return torch.randint(3, 97, (batch, length), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def logits(model: PreTrainedModel, ids: torch.Tensor | None = None) -> torch.Tensor:
    return model(tokens() if ids is None else ids, use_cache=False).logits


def digest(model: PreTrainedModel) -> str:
    """Return a hash of all stored weights, their names and types."""
    total = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        total.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        total.update(value.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def assert_same_weights(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor], keys: Iterable[str] = ()) -> None:
    assert one.keys() == two.keys()
    for key in keys or one:
        assert one[key].dtype == two[key].dtype, key
        assert torch.equal(one[key], two[key]), key
