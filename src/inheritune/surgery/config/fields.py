"""What a configuration says of single layers, and where a new model's layers come from in those terms.

Three shapes of field are known: one entry per layer (`layer_types`), layer numbers (`mlp_only_layers`), and patterns
that only derive either (`first_k_dense_replace`, see `families`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inheritune.errors import PlanError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

LAYER_NUMBERS = (
    "attn_layer_indices",
    "cross_attention_layers",
    "full_attn_idxs",
    "hybrid_layer_ids",
    "mlp_only_layers",
    "moe_layers",
)
"""Fields that list layer numbers, not one entry per layer."""

NOT_LAYERS = (
    "architectures",
    "attention_types",
    "block_types",
    "languages",
    "mlp_multipliers",
    "mtp_layers_block_type",
    "ple_layer_ids",
    "ssm_multipliers",
    "time_step_limit",
)
"""Lists that have nothing to do with layers, though a shallow model may have as many."""

WITHOUT_ATTENTION = ("conv", "linear_attention", "mamba", "mlp", "moe", "recurrent")
"""Kinds of layers that keep no keys and values."""

NUMBERED = "per_layer_config"
"""The field that keys settings by layer number (Gemma 4)."""

Source = tuple["PretrainedConfig", int]
"""The configuration of the text decoder a target layer comes from, and that layer's number in it."""


def depth_of(config: PretrainedConfig) -> int:
    """Return the number of layers of the text decoder that `config` describes."""
    return int(config.get_text_config(decoder=True).num_hidden_layers)


def per_layer_fields(config: PretrainedConfig) -> list[str]:
    """Return the fields with one entry per layer; a list of token ids may be as long by chance and is left out."""
    depth = config.num_hidden_layers
    return [
        name
        for name, value in config.to_dict().items()
        if isinstance(value, list | tuple) and len(value) == depth
        if name not in NOT_LAYERS and not name.endswith("_token_id")
    ]


def entry_of(source: Source, name: str) -> Any:
    """Return what the per-layer field `name` says of a layer.

    Raises:
        PlanError: the layer's model has no such list.
    """
    config, layer = source
    values = getattr(config, name, None)
    if not isinstance(values, list | tuple) or len(values) != config.num_hidden_layers:
        raise PlanError(f"the two models differ in {name!r}: expected a reference and a target of the same family")
    return values[layer]


def numbered(config: PretrainedConfig) -> dict[int, dict[str, Any]]:
    """Return the settings that a configuration keys by layer number (Gemma 4's wider heads of full attention)."""
    return {int(layer): values for layer, values in (config.to_dict().get(NUMBERED) or {}).items()}


def has_attention(config: PretrainedConfig) -> bool:
    """Return whether any layer has attention; so does every layer where the configuration names no kinds of layers."""
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None) or ["full_attention"]
    return any(kind not in WITHOUT_ATTENTION for kind in kinds)
