"""Which part a weight belongs to, against the classes of the modules that transformers builds."""

from __future__ import annotations

import pytest
from torch import nn
from transformers import CONFIG_MAPPING

from inheritune.decoder import open_decoder
from inheritune.errors import PlanError
from inheritune.surgery import blueprint, part_of

FAMILIES = [
    "gpt2",
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3_text",
    "phi",
    "phi3",
    "olmo",
    "olmo2",
    "olmo3",
    "gpt_neox",
    "opt",
    "falcon",
    "bloom",
    "mpt",
    "gptj",
    "gpt_neo",
    "starcoder2",
    "stablelm",
    "cohere",
    "cohere2",
    "smollm3",
    "granite",
    "gpt_bigcode",
    "codegen",
    "mixtral",
    "qwen3_moe",
    "gpt_oss",
    "exaone4",
    "glm4",
    "helium",
    "xglm",
    "biogpt",
    "persimmon",
    "qwen2_moe",
    "granitemoe",
    "olmoe",
    "bitnet",
    "ctrl",
    "seed_oss",
    "apertus",
    "deepseek_v2",
]


def class_part(block: nn.Module, key: str) -> str:
    """Say the part by the class of the block's child that holds the weight: an oracle that reads no names."""
    child = getattr(block, key.split(".")[0])
    kind = type(child).__name__
    if "Attention" in kind or "Attn" in kind:
        return "attention"
    if "Norm" in kind:
        return "norms"
    if "MLP" in kind.upper() or "MoE" in kind or "Moe" in kind or isinstance(child, nn.Linear | nn.Sequential):
        return "mlp"
    raise AssertionError(f"the oracle does not know {kind}")


@pytest.mark.parametrize("name", FAMILIES)
def test_every_weight_of_a_block_has_its_modules_part(name: str) -> None:
    decoder = open_decoder(blueprint(CONFIG_MAPPING[name]()))
    block = decoder.blocks[-1]
    parts = {key: part_of(key) for key in block.state_dict()}
    assert parts == {key: class_part(block, key) for key in parts}
    assert {"attention", "mlp"} <= set(parts.values())


@pytest.mark.parametrize(
    ("key", "part"),
    [
        ("self_attn.q_norm.weight", "attention"),
        ("self_attn.q_layernorm.norms.0.weight", "attention"),
        ("self_attn.attn_sub_norm.weight", "attention"),
        ("mlp.ffn_sub_norm.weight", "mlp"),
        ("post_attention_layernorm.weight", "norms"),
        ("self_attn_layer_norm.bias", "norms"),
        ("ln_attn.weight", "norms"),
        ("ln_mlp.weight", "norms"),
        ("pre_feedforward_layernorm.weight", "norms"),
        ("norm_attn_norm.attn.Wqkv.weight", "attention"),
        ("norm_attn_norm.norm_1.weight", "norms"),
        ("ffn.router.layer.weight", "mlp"),
        ("block_sparse_moe.experts.3.w1.weight", "mlp"),
        ("fc2.bias", "mlp"),
    ],
)
def test_names_that_say_two_things(key: str, part: str) -> None:
    assert part_of(key) == part


@pytest.mark.parametrize(
    "key", ["mixer.in_proj.weight", "layer_scalar", "per_layer_input_gate.weight", "altup.x.weight"]
)
def test_an_unknown_weight_is_named_not_guessed(key: str) -> None:
    with pytest.raises(PlanError, match=f"'{key}' belongs to: expected parts 'all'"):
        part_of(key)
