"""Tiny random models of many families whose attention is far from uniform, and their probabilities, ours and theirs."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from inheritune.decoder import open_decoder
from inheritune.spectra.measure.pieces import Piece
from inheritune.spectra.watch.capture import visit_attention

T = 20
WINDOW = 7
SMALL: dict[str, Any] = {"vocab_size": 97, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
MHA = SMALL | {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
OLD = SMALL | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
FAIRSEQ = SMALL | {"d_model": 32, "ffn_dim": 48, "attention_heads": 4, "num_layers": 2, "max_position_embeddings": 64}
GQA = MHA | {"num_key_value_heads": 2}
MQA = MHA | {"num_key_value_heads": 1}
HEADS = GQA | {"head_dim": 16}
"""Heads that together are wider than the model."""
BOTH = ["sliding_attention", "full_attention"]
SLIDING = HEADS | {"sliding_window": WINDOW, "layer_types": BOTH}
MOE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LATENT = MHA | {
    "num_key_value_heads": 4,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "qk_head_dim": 12,
    "v_head_dim": 8,
    "head_dim": 4,
}
ROUTED = MOE | {"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1}
LINEAR = {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 4, "mamba_n_groups": 1}


@dataclass(frozen=True)
class Family:
    """How to build a tiny model of a family.

    Attributes:
        settings: of its configuration.
        attention: the layers that have attention.
        alibi: whether its logits carry ALiBi, so that `full` is refused.
        model_type: where it is not the name in the table.
    """

    settings: dict[str, Any]
    attention: tuple[int, ...] = (0, 1)
    alibi: bool = False
    model_type: str = ""


THROUGH_INTERFACE: dict[str, Family] = {
    "afmoe": Family(SLIDING | MOE | {"num_dense_layers": 1}),
    "apertus": Family(GQA),
    "arcee": Family(HEADS),
    "biogpt": Family(MHA),
    "bitnet": Family(GQA),
    "cohere": Family(GQA),
    "cohere2": Family(SLIDING),
    "ctrl": Family(OLD | {"dff": 48}),
    "deepseek_v2": Family(LATENT | ROUTED),
    "deepseek_v3": Family(LATENT | ROUTED),
    "ernie4_5": Family(HEADS),
    "exaone4": Family(SLIDING),
    "gemma": Family(MQA | {"head_dim": 16}),
    "gemma2": Family(SLIDING | {"attn_logit_softcapping": 3.0, "query_pre_attn_scalar": 16}),
    "gemma3_text": Family(SLIDING | {"query_pre_attn_scalar": 16}),
    "glm": Family(HEADS),
    "glm4": Family(HEADS),
    "glm4_moe": Family(HEADS | ROUTED),
    "gpt2": Family(OLD),
    "gpt2 (scaled by layer)": Family(OLD | {"scale_attn_by_inverse_layer_idx": True}, model_type="gpt2"),
    "gpt_bigcode": Family(OLD | {"multi_query": True}),
    "gpt_neox": Family(MHA),
    "gpt_oss": Family(SLIDING | MOE),
    "granite": Family(GQA),
    "granitemoe": Family(GQA | MOE),
    "helium": Family(GQA | {"head_dim": 8}),
    "hunyuan_v1_dense": Family(HEADS),
    "jetmoe": Family(MHA | MOE | {"num_key_value_heads": 2, "kv_channels": 8}),
    "llama": Family(GQA),
    "llama4_text": Family(
        HEADS
        | MOE
        | {
            "no_rope_layers": [1, 0],
            "layer_types": ["chunked_attention", "full_attention"],
            "attention_chunk_size": WINDOW,
            "intermediate_size_mlp": 48,
        }
    ),
    "longcat_flash": Family(
        {name: value for name, value in LATENT.items() if name != "num_hidden_layers"}
        | ROUTED
        | {"num_layers": 2, "ffn_hidden_size": 48, "expert_ffn_hidden_size": 16, "moe_topk": 2, "zero_expert_num": 2}
    ),
    "minicpm3": Family(LATENT),
    "minimax_m2": Family(HEADS | MOE),
    "ministral": Family(SLIDING),
    "mistral": Family(HEADS | {"sliding_window": WINDOW}),
    "mixtral": Family(HEADS | MOE),
    "modernbert-decoder": Family(MHA | {"local_attention": 2 * WINDOW, "layer_types": BOTH}),
    "nanochat": Family(GQA),
    "nemotron": Family(HEADS),
    "olmo": Family(GQA | {"clip_qkv": 2.0}),
    "olmo2": Family(GQA),
    "olmo3": Family(GQA | {"sliding_window": WINDOW, "layer_types": BOTH}),
    "olmoe": Family(GQA | MOE),
    "opt": Family(MHA | {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "persimmon": Family(MHA),
    "phi": Family(GQA | {"partial_rotary_factor": 0.5}),
    "phi3": Family(GQA | {"sliding_window": WINDOW}),
    "phimoe": Family(GQA | MOE),
    "qwen2": Family(GQA | {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}),
    "qwen2_moe": Family(GQA | MOE | {"shared_expert_intermediate_size": 16}),
    "qwen3": Family(HEADS),
    "qwen3_moe": Family(HEADS | MOE),
    "seed_oss": Family(HEADS),
    "smollm3": Family(GQA | {"no_rope_layers": [1, 0]}),
    "stablelm": Family(GQA | {"use_parallel_residual": True, "qk_layernorm": True}),
    "starcoder2": Family(MQA | {"sliding_window": WINDOW}),
    "vaultgemma": Family(SLIDING | {"attn_logit_softcapping": 3.0, "query_pre_attn_scalar": 16}),
}
HYBRIDS: dict[str, Family] = {
    "bamba": Family(HEADS | MAMBA | {"num_hidden_layers": 4, "attn_layer_indices": [1, 3]}, (1, 3)),
    "falcon_h1": Family(HEADS | MAMBA | {"mamba_d_ssm": 32, "mamba_d_head": 8}),  # attention and Mamba side by side
    "granitemoehybrid": Family(
        GQA | MOE | MAMBA | {"layer_types": ["mamba", "attention"], "shared_intermediate_size": 16}, (1,)
    ),
    "jamba": Family(
        GQA
        | MOE
        | {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 4}
        | {"mamba_dt_rank": 4, "use_mamba_kernels": False},
        (1, 3),
    ),
    "lfm2": Family(GQA | {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"]}, (1,)),
    "lfm2_moe": Family(GQA | MOE | {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1}, (1,)),
    "minimax": Family(HEADS | MOE | {"layer_types": ["linear_attention", "full_attention"], "block_size": 8}, (1,)),
    "nemotron_h": Family(
        HEADS
        | MOE
        | {"num_hidden_layers": 4, "hybrid_override_pattern": "M*-*", "ssm_state_size": 4, "mamba_num_heads": 8}
        | {"mamba_head_dim": 8, "n_groups": 1},
        (1, 3),
    ),
    "olmo_hybrid": Family(GQA | LINEAR, (1,)),
    "qwen3_5_text": Family(HEADS | LINEAR | {"layer_types": ["linear_attention", "full_attention"]}, (1,)),
    "qwen3_next": Family(HEADS | LINEAR | MOE | {"num_hidden_layers": 4, "shared_expert_intermediate_size": 16}, (3,)),
    "recurrent_gemma": Family(
        MQA | {"num_hidden_layers": 3, "lru_width": 32, "attention_window_size": WINDOW, "head_dim": 8}, (2,)
    ),
    "zamba2": Family(  # the two hybrid layers share one attention block
        MHA
        | {"num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"], "num_mem_blocks": 1}
        | {"mamba_d_state": 4, "mamba_headdim": 8, "n_mamba_heads": 8, "mamba_ngroups": 1, "attention_head_dim": 16},
        (1, 3),
    ),
}
OF_THEIR_OWN: dict[str, Family] = {
    "diffllama": Family(GQA),  # calls its attention function twice with the same queries
    "doge": Family(GQA),  # the mask carries a bias made from the values
    "granite_swa": Family(SLIDING),  # reports its weights before the sinks take their share
}
BY_HOOK: dict[str, Family] = {
    "bloom": Family(SMALL | {"hidden_size": 32, "n_layer": 2, "n_head": 4}, alibi=True),
    "codegen": Family(OLD | {"rotary_dim": 4}),
    "falcon": Family(MHA),  # one key head, parallel blocks
    "falcon (alibi)": Family(MHA | {"alibi": True, "multi_query": False}, alibi=True, model_type="falcon"),
    "falcon (new)": Family(MHA | {"new_decoder_architecture": True, "num_kv_heads": 2}, model_type="falcon"),
    "gpt_neo": Family(
        SMALL
        | {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 64, "window_size": WINDOW}
        | {"attention_types": [[["global", "local"], 1]]}
    ),
    "gpt_neox_japanese": Family(MHA),
    "gptj": Family(OLD | {"rotary_dim": 4}),
    "mpt": Family(SMALL | {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64}, alibi=True),
    "openai-gpt": Family(OLD),
    "xglm": Family(FAIRSEQ),
}
FAMILIES = THROUGH_INTERFACE | HYBRIDS | BY_HOOK
WINDOWED = {
    "afmoe": 0, "cohere2": 0, "exaone4": 0, "gemma2": 0, "gemma3_text": 0, "gpt_neo": 1, "gpt_oss": 0, "llama4_text": 0,
    "ministral": 0, "mistral": 0, "modernbert-decoder": 0, "olmo3": 0, "phi3": 0, "qwen2": 1, "recurrent_gemma": 2,
    "starcoder2": 0, "vaultgemma": 0,
}  # fmt: skip
"""A layer of each family with a window (or chunk) smaller than T."""

Captured = dict[tuple[str, int], torch.Tensor]


def build(name: str) -> PreTrainedModel:
    """Return a new tiny model with the implementation of attention that transformers chooses."""
    family = (FAMILIES | OF_THEIR_OWN)[name]
    if (family.model_type or name) not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {name}")
    torch.manual_seed(7)
    config = CONFIG_MAPPING[family.model_type or name](**family.settings)
    return sharpened(AutoModelForCausalLM.from_config(config, dtype=torch.float32))


@functools.cache
def source(name: str) -> PreTrainedModel:
    """Return the one model of a family that tests share; they must not change it."""
    return build(name)


def sharpened(model: PreTrainedModel) -> PreTrainedModel:
    """Move every weight off its initial value, and matrices so far that attention is sharp."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.add_(torch.randn(weight.shape, generator=generator) * (0.25 if weight.dim() > 1 else 0.1))
            if re.search(r"\b(q|k|query|key)_?(layer)?norm", name):
                weight.mul_(2)
    return model.eval()


def tokens(sequences: int = 2, length: int = T) -> torch.Tensor:
    return torch.randint(3, 97, (sequences, length), generator=torch.Generator().manual_seed(3))


def captured(model: PreTrainedModel, ids: torch.Tensor, *masks: Any) -> Captured:
    """Return the probabilities (N, H, T, T) for each (mask, layer), every place filled exactly once."""
    pieces: list[Piece] = []

    def keep(piece: Piece) -> None:
        pieces.append(Piece(piece.layer, piece.mask, piece.sequence, piece.head, piece.probabilities.clone()))

    visit_attention(open_decoder(model), ids, masks, keep)
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
