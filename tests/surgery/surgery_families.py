"""Tiny random models of many families, each with weights off every symmetric point; oracles that use no surgery."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from inheritune.decoder import open_decoder

DEPTH = 4
WINDOW = 5
_TOKENS = {"vocab_size": 97, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
_WINDOWS = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]
_SLIDING = {"layer_types": _WINDOWS}
_IN_TURN = ["sliding_attention", "full_attention"] * 2
_MULTI_HEAD = {"num_key_value_heads": 4}
_LATENT = {**_MULTI_HEAD, "head_dim": 4, "qk_head_dim": 12}
_INDEXED = {**_LATENT, "index_head_dim": 8, "index_n_heads": 2, "index_topk": 4}
TINY: dict[str, Any] = {
    # sizes, in the words of all families
    "hidden_size": 32, "n_embd": 32, "d_model": 32, "dim_model": 32, "word_embed_proj_dim": 32,
    "num_hidden_layers": DEPTH, "n_layer": DEPTH, "n_layers": DEPTH, "num_layers": DEPTH,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4, "attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "dim_head": 8, "kv_channels": 8, "rotary_dim": 4,
    "intermediate_size": 48, "ffn_dim": 48, "dff": 48, "dim_ff": 48, "ffn_hidden_size": 48, "intermediate_size_mlp": 48,
    "max_position_embeddings": 64, "n_positions": 64, "max_seq_len": 64,
    # windows
    "sliding_window": WINDOW, "window_size": WINDOW, "attention_chunk_size": 7, "local_attention": 2 * WINDOW,
    # experts
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4,
    "num_experts_per_tok": 2, "moe_k": 2, "n_group": 2, "topk_group": 1, "n_shared_experts": 1,
    "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "shared_intermediate_size": 16,
    "first_k_dense_replace": 2, "num_dense_layers": 1,
    # latent attention
    "q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8,
    # linear attention and state spaces
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 4, "mamba_n_groups": 1, "mamba_dt_rank": 4,
    "state_size": 4,
    # inputs for each layer
    "vocab_size_per_layer_input": 97, "hidden_size_per_layer_input": 8, "laurel_rank": 4, "num_kv_shared_layers": 2,
}  # fmt: skip
"""Every family takes from here what it has a word for."""

MIXED = (2, 0, 3, 3, 1)
DENSE_FIRST = (1, 0, 0, 3, 2)
"""A plan for families that keep dense layers in front of sparse ones."""


@dataclass(frozen=True)
class Family:
    """How to build a tiny model, and which plans it can express.

    Attributes:
        settings: of its configuration, beside those of `TINY`.
        mixed: a permuted and repeated plan.
        kept: a plan whose model generates.
        cached: whether transformers itself generates the same with and without a KV cache.
        grown: layers that can be appended behind all.
        in_files: whether the surgery on files is possible: no layers share weights, and no weight holds all layers'.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    mixed: tuple[int, ...] = MIXED
    kept: tuple[int, ...] = (3, 0, 1)
    cached: bool = True
    grown: tuple[int, ...] = (2, 3)
    in_files: bool = True


def _dense_first(settings: dict[str, Any] | None = None) -> Family:
    return Family(settings or {}, mixed=DENSE_FIRST, kept=(1, 2, 3))


_PLAIN = (
    "apertus arcee aria_text biogpt bitnet codegen cohere cohere2_moe ctrl cwm deepseek_v4 doge ernie4_5 falcon_mamba "
    "flex_olmo flint gemma glm glm4 gpt2 gpt_bigcode gpt_neox granite granitemoe granitemoe_swa granitemoeshared "
    "helium hunyuan_v1_dense hunyuan_v1_moe hy_v3 hyperclovax inkling_text internlm3 iquestcoder jais2 jetmoe laguna "
    "llama mamba mimo_v2_flash minimax_m2 minimax_m3_vl_text ministral3 mistral mixtral mpt nanochat nemotron olmo "
    "olmo2 olmoe openai-gpt persimmon phi phi3 phimoe qwen3_moe seed_oss solar_open stablelm starcoder2 xglm "
)
_DECODERS: dict[str, Family] = {
    **{name: Family() for name in _PLAIN.split()},
    "afmoe": Family(_SLIDING, mixed=(0, 2, 3, 3, 1), kept=(0, 3, 1)),
    "axk1": _dense_first(_LATENT),
    "bloom": Family({"hidden_size": 32}),
    "cohere2": Family(_SLIDING),
    "dbrx": Family(
        {"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0}}
        | {"ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2, "ffn_act_fn": {"name": "silu"}}}
    ),
    "deepseek_v2": _dense_first(_LATENT),
    "deepseek_v3": _dense_first(_LATENT),
    "dots1": _dense_first(_SLIDING),
    "ernie4_5_moe": Family(mixed=(0, 2, 3, 3, 1), kept=(0, 3, 1)),
    "exaone4": Family(_SLIDING),
    "exaone_moe": Family(_SLIDING),
    "falcon": Family({"multi_query": True}),
    "gemma2": Family(_SLIDING),
    "gemma3_text": Family(_SLIDING),
    "gemma3n_text": Family(
        {"intermediate_size": [48] * DEPTH, "activation_sparsity_pattern": [0.5, 0.0] * 2, "layer_types": _IN_TURN},
        mixed=(1, 0, 3, 3, 2),
        kept=(0, 1, 3),
        in_files=False,
    ),
    "gemma4_text": Family(
        {"layer_types": _IN_TURN, "global_head_dim": 16}, mixed=(1, 0, 2, 2, 3), kept=(0, 1, 3), in_files=False
    ),
    "glm4_moe": _dense_first(),
    "glm4_moe_lite": _dense_first(_LATENT),
    "glm_moe_dsa": Family(
        _INDEXED | {"indexer_types": ["full", "shared"] * 2}, mixed=(2, 3, 0, 0, 1), kept=(2, 3, 0), cached=False
    ),
    "gpt_neo": Family({"attention_types": [[["global", "local"], 2]]}),
    "gpt_oss": Family(_SLIDING),
    "gptj": Family(),
    "granite_swa": Family(_SLIDING),
    "llama4_text": Family({"no_rope_layers": [1, 0, 1, 1], "interleave_moe_layer_step": 2}),
    "mellum": Family(_SLIDING),
    "minicpm3": Family(_LATENT),
    "ministral": Family(_SLIDING),
    "modernbert-decoder": Family({"layer_types": _WINDOWS}, mixed=(0, 2, 3, 3, 1), kept=(0, 3, 1)),
    "olmo3": Family(_SLIDING),
    "opt": Family(),
    "qwen2": Family({"use_sliding_window": True, "max_window_layers": 2}),
    "qwen2_moe": Family({"decoder_sparse_step": 2}),
    "qwen3": Family({**_SLIDING, "use_sliding_window": True}),
    "smollm3": Family({"no_rope_layers": [1, 0, 1, 0]}),
    "vaultgemma": Family(_SLIDING),
}
_CONVOLUTIONS = {"layer_types": ["conv", "full_attention"] * 2}
HYBRIDS: dict[str, Family] = {
    "bamba": Family({"attn_layer_indices": [1, 3]}),
    "bailing_hybrid": Family({**_LATENT, "head_dim": 8, "layer_group_size": 2}),
    "falcon_h1": Family({"mamba_d_ssm": 32, "mamba_d_head": 8}),
    "granitemoehybrid": Family({"layer_types": ["mamba", "attention"] * 2}),
    "jamba": Family(
        {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
        mixed=(1, 0, 3, 0, 3),
        kept=(3, 0, 1),
    ),
    "lfm2": Family(_CONVOLUTIONS),
    "lfm2_moe": Family(_CONVOLUTIONS, mixed=(0, 2, 3, 3, 1), kept=(0, 3, 1)),
    "minimax": Family({"layer_types": ["linear_attention", "full_attention"] * 2, "block_size": 8}, cached=False),
    "nemotron_h": Family(
        {"hybrid_override_pattern": "M*-*", "ssm_state_size": 4, "mamba_num_heads": 8, "mamba_head_dim": 8}
        | {"n_groups": 1}
    ),
    "olmo_hybrid": Family({"layer_types": ["linear_attention", "full_attention"] * 2}),
    "qwen3_5_text": Family(),
    "qwen3_next": Family(),
    "recurrent_gemma": Family({"num_key_value_heads": 1, "lru_width": 32, "attention_window_size": 7}, kept=(2, 0, 1)),
    "xlstm": Family(cached=False),
    "zamba": Family(
        {**_MULTI_HEAD, "attention_head_dim": 16, "attention_hidden_size": 64, "n_mamba_heads": 2}
        | {"layers_block_type": ["hybrid", "hybrid", "mamba", "hybrid"]},
        in_files=False,
    ),
    "zamba2": Family(
        {"layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"], "num_mem_blocks": 1, "mamba_headdim": 8}
        | {"n_mamba_heads": 8, "mamba_ngroups": 1, "attention_head_dim": 16, "num_key_value_heads": 4},
        mixed=(2, 1, 0, 2, 3),
        kept=(0, 1, 3),
        grown=(2, 2),
        in_files=False,
    ),
}
FAMILIES = _DECODERS | HYBRIDS


def tiny_config(name: str, **settings: Any) -> Any:
    """Return a tiny configuration of any model type; `settings` come last."""
    if name not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {name}")
    kind = CONFIG_MAPPING[name]
    words = set(inspect.signature(kind.__init__).parameters)
    words |= {entry.name for entry in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set()
    known = {word: value for word, value in TINY.items() if word in words and word not in kind.attribute_map}
    return kind(**(_TOKENS | known | (FAMILIES[name].settings if name in FAMILIES else {}) | settings))


def build(config: Any) -> PreTrainedModel:
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return model


@functools.cache
def source(name: str) -> PreTrainedModel:
    """Return the one tiny model of a family; tests must not change it."""
    return build(tiny_config(name))


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


Change = Callable[[torch.Tensor], torch.Tensor]


@contextmanager
def hidden_states(
    model: PreTrainedModel, into: dict[int, Change] | None = None, out_of: dict[int, Change] | None = None
) -> Iterator[None]:
    """Pass the hidden states that enter or leave some blocks through functions, which may replace them."""

    def before(change: Change) -> Callable[..., Any]:
        def hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if args:
                return (change(args[0]), *args[1:]), kwargs
            return args, kwargs | {"hidden_states": change(kwargs["hidden_states"])}

        return hook

    def after(change: Change) -> Callable[..., Any]:
        def hook(block: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if isinstance(output, torch.Tensor):
                return change(output)
            return type(output)([change(output[0]), *output[1:]])

        return hook

    blocks = open_decoder(model).blocks
    handles = [blocks[i].register_forward_pre_hook(before(f), with_kwargs=True) for i, f in (into or {}).items()]
    handles += [blocks[i].register_forward_hook(after(f)) for i, f in (out_of or {}).items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def logits_after(model: PreTrainedModel, count: int) -> torch.Tensor:
    """Return what the model's own final norm and head make of the hidden state after its first `count` blocks."""
    held: list[torch.Tensor] = []

    def keep(hidden: torch.Tensor) -> torch.Tensor:
        held.append(hidden.clone())
        return hidden

    def restore(hidden: torch.Tensor) -> torch.Tensor:
        return held[0]

    last = open_decoder(model).layers - 1
    with hidden_states(model, {count: keep} if count <= last else {}, {last: restore} if count <= last else {}):
        return logits(model)


def trace(model: PreTrainedModel) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return the hidden states that enter and leave each block."""
    layers = range(open_decoder(model).layers)
    entering: dict[int, torch.Tensor] = {}
    leaving: dict[int, torch.Tensor] = {}

    def record(found: dict[int, torch.Tensor], layer: int) -> Change:
        def keep(hidden: torch.Tensor) -> torch.Tensor:
            found[layer] = hidden.clone()
            return hidden

        return keep

    into, out_of = ({i: record(found, i) for i in layers} for found in (entering, leaving))
    with hidden_states(model, into, out_of):
        logits(model)
    return [entering[i] for i in layers], [leaving[i] for i in layers]


def own_blocks_outputs(model: PreTrainedModel, layers: Sequence[int], entering: Sequence[torch.Tensor]) -> list[Any]:
    """Return what `model`'s own block `layers[t]`, called by the model itself, makes of `entering[t]`, for each t.

    In each pass all of these blocks get the hidden state of their place, so that what one hands to another beside the
    hidden state (shared keys and values) is there as well.
    """
    outputs: list[Any] = []

    def give(hidden: torch.Tensor) -> Change:
        return lambda _: hidden

    def record(hidden: torch.Tensor) -> torch.Tensor:
        outputs.append(hidden.clone())
        return hidden

    for t, layer in enumerate(layers):
        given = dict(zip(layers, entering, strict=True)) | {layer: entering[t]}
        with hidden_states(model, {i: give(hidden) for i, hidden in given.items()}, {layer: record}):
            logits(model)
    return outputs


def load(folder: Path) -> PreTrainedModel:
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return model


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
