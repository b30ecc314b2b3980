"""A Llama-shaped checkpoint of any size for the benchmarks, written with one shard in memory at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LlamaConfig

LAYERS_IN_A_SHARD = 8


def write_llama(
    folder: Path, shape: Mapping[str, Any], size: int, dtype: str, make: Callable[[tuple[int, ...]], Tensor]
) -> int:
    """Write config.json, shards and index into the new `folder`, and return the number of layers.

    Args:
        folder: is made.
        shape: fields of the LlamaConfig, without the number of layers.
        size: bytes of the weights, about.
        dtype: of the weights.
        make: gives a weight of the shape that it gets.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    folder.mkdir()
    config = LlamaConfig(**shape, num_hidden_layers=1, dtype=dtype, architectures=["LlamaForCausalLM"])
    outside, block = _numel(_outside_shapes(config)), _numel(_block_shapes(config, 0))
    depth = max(1, round((size / getattr(torch, dtype).itemsize - outside) / block))
    config.num_hidden_layers = depth
    config.save_pretrained(folder)
    groups = [_outside_shapes(config)]
    for start in range(0, depth, LAYERS_IN_A_SHARD):
        layers = range(start, min(start + LAYERS_IN_A_SHARD, depth))
        groups.append({name: shape for layer in layers for name, shape in _block_shapes(config, layer).items()})
    weight_map: dict[str, str] = {}
    for number, shapes in enumerate(groups, start=1):
        name = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        save_file({key: make(each) for key, each in shapes.items()}, folder / name, {"format": "pt"})
        weight_map |= dict.fromkeys(shapes, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return depth


def _outside_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    table = (config.vocab_size, config.hidden_size)
    return {"model.embed_tokens.weight": table, "lm_head.weight": table, "model.norm.weight": (config.hidden_size,)}


def _block_shapes(config: LlamaConfig, layer: int) -> dict[str, tuple[int, ...]]:
    wide, inner = config.hidden_size, config.intermediate_size
    keys = config.head_dim * config.num_key_value_heads
    shapes = {
        "self_attn.q_proj": (wide, wide),
        "self_attn.k_proj": (keys, wide),
        "self_attn.v_proj": (keys, wide),
        "self_attn.o_proj": (wide, wide),
        "mlp.gate_proj": (inner, wide),
        "mlp.up_proj": (inner, wide),
        "mlp.down_proj": (wide, inner),
        "input_layernorm": (wide,),
        "post_attention_layernorm": (wide,),
    }
    return {f"model.layers.{layer}.{name}.weight": shape for name, shape in shapes.items()}


def _numel(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())
