"""The configuration of a target model: its depth, and every field that says something about single layers.

transformers builds the model from its configuration, so this is where a layer's kind (sliding or full attention, RoPE
or none, dense or sparse MLP) moves with its weights. Three shapes of field are known: one entry per layer
(`layer_types`), layer numbers (`mlp_only_layers`), and patterns that only derive either (`first_k_dense_replace`).
What a family hides elsewhere is found by `fit.check_fit`, which compares the blocks that the new configuration builds.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from inheritune.errors import ModelError, PlanError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from inheritune.surgery.plan import LayerPlan

LAYER_NUMBERS = (
    "cross_attention_layers",
    "full_attn_idxs",
    "hybrid_layer_ids",
    "mlp_only_layers",
    "moe_layers",
)
"""Fields that list layer numbers, not one entry per layer."""

NOT_LAYERS = ("architectures", "block_types", "languages", "mlp_multipliers", "ssm_multipliers", "time_step_limit")
"""Lists that have nothing to do with layers, though a shallow model may have as many."""

Source = tuple["PretrainedConfig", int]
"""The configuration of the text decoder a target layer comes from, and that layer's number in it."""


def target_config(configs: Mapping[str, PretrainedConfig], plan: LayerPlan) -> PretrainedConfig:
    """Return a new configuration for the model that `plan` describes.

    Args:
        configs: configurations of the models the plan takes layers from, `"reference"` and perhaps `"target"`.
        plan: where each layer comes from. A random layer i is configured as layer i modulo the depth of the model that
            the plan's other weights come from (`plan.rest`), which continues a periodic pattern of layer kinds.

    Raises:
        PlanError: the plan does not fit the models, or no configuration can say what it asks for.
        ModelError: a model is quantised.
    """
    texts = {name: config.get_text_config(decoder=True) for name, config in configs.items()}
    for config in configs.values():
        refuse_quantised(config)
    if len(kinds := sorted({text.model_type for text in texts.values()})) > 1:
        raise PlanError(f"reference and target are of different families ({' and '.join(kinds)}): expected the same")
    for text in texts.values():
        _refuse_counted_twice(text)
    plan.check({name: depth_of(text) for name, text in texts.items()})
    new = copy.deepcopy(configs[plan.rest])
    with unsayable(new):
        fields = set_layers(new.get_text_config(decoder=True), _sources(texts, plan))
        _check_reload(new, fields)
    return new


@contextmanager
def unsayable(config: PretrainedConfig) -> Iterator[None]:
    """Turn transformers' refusal of the new configuration into a `PlanError`: the family cannot say what was asked."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except (ValueError, NotImplementedError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        raise PlanError(f"no {config.model_type} configuration can say this plan: {reason}") from error


def _refuse_counted_twice(config: PretrainedConfig) -> None:
    """Refuse a family whose `num_hidden_layers` counts something smaller than its blocks (LongCat-Flash)."""
    blocks = getattr(config, "num_layers", None)
    if "num_layers" not in config.attribute_map.values() and isinstance(blocks, int) and blocks != depth_of(config):
        raise PlanError(
            f"{config.model_type} has {blocks} blocks and counts {depth_of(config)} layers in them: its layers cannot "
            "be taken apart one by one"
        )


def depth_of(config: PretrainedConfig) -> int:
    """Return the number of layers of the text decoder that `config` describes."""
    return int(config.get_text_config(decoder=True).num_hidden_layers)


def set_layers(config: PretrainedConfig, sources: list[Source]) -> list[str]:
    """Make `config` describe a decoder whose layer t is `sources[t]`; return the names of the fields that were set."""
    fields = [name for name in _per_layer_fields(config) if name not in LAYER_NUMBERS]
    taken = {name: [_entry(source, name) for source in sources] for name in fields}
    for name in LAYER_NUMBERS:
        if isinstance(getattr(config, name, None), list):
            taken[name] = [t for t, (owner, layer) in enumerate(sources) if layer in (getattr(owner, name) or ())]
    for derive in _PATTERNS:
        taken |= derive(config, sources)
    config.num_hidden_layers = len(sources)
    for name, value in taken.items():
        setattr(config, name, value)
    return ["num_hidden_layers", *taken]


def refuse_quantised(config: PretrainedConfig) -> None:
    """Refuse a quantised model: its layers hold packed integers and scales that no training can heal."""
    quantisation = getattr(config, "quantization_config", None)
    if quantisation:
        method = quantisation.get("quant_method") if isinstance(quantisation, dict) else quantisation.quant_method
        raise ModelError(
            f"the model is quantised ({getattr(method, 'value', method)}): expected full-precision weights; "
            "use the original checkpoint, or call model.dequantize() and pass the model"
        )


def _check_reload(config: PretrainedConfig, fields: Iterable[str]) -> None:
    """Confirm that `config` says the same in these fields after it is saved and loaded.

    Some families derive a list from another field when they load, or key settings by layer numbers.
    """
    again = type(config).from_dict(config.to_dict()).get_text_config(decoder=True)
    text = config.get_text_config(decoder=True)
    for name in fields:
        if getattr(again, name, None) != getattr(text, name):
            raise PlanError(
                f"a saved {config.model_type} configuration would lose {name!r} of this plan: not supported"
            )


def _sources(texts: Mapping[str, PretrainedConfig], plan: LayerPlan) -> list[Source]:
    rest = texts[plan.rest]
    depth = depth_of(rest)
    return [
        (rest, index % depth) if row.model is None or row.source is None else (texts[row.model], row.source)
        for index, row in enumerate(plan)
    ]


def _per_layer_fields(config: PretrainedConfig) -> list[str]:
    """Return the fields with one entry per layer; a list of token ids may be as long by chance and is left out."""
    depth = config.num_hidden_layers
    return [
        name
        for name, value in config.to_dict().items()
        if isinstance(value, list | tuple) and len(value) == depth
        if name not in NOT_LAYERS and not name.endswith("_token_id")
    ]


def _entry(source: Source, name: str) -> Any:
    config, layer = source
    values = getattr(config, name, None)
    if not isinstance(values, list | tuple) or len(values) != config.num_hidden_layers:
        raise PlanError(f"the two models differ in {name!r}: expected a reference and a target of the same family")
    return values[layer]


def _gpt_neo(config: PretrainedConfig, sources: list[Source]) -> dict[str, Any]:
    """GPT-Neo saves `attention_types`, from which it derives the list that the model reads."""
    if not hasattr(config, "attention_types") or not hasattr(config, "attention_layers"):
        return {}
    return {"attention_types": [[[_entry(source, "attention_layers")], 1] for source in sources]}


def _sparse_step(config: PretrainedConfig, sources: list[Source]) -> dict[str, Any]:
    """Qwen-MoE's rule: layer i is sparse if it is not in `mlp_only_layers` and `decoder_sparse_step` divides i + 1."""
    if not hasattr(config, "decoder_sparse_step") or not hasattr(config, "mlp_only_layers"):
        return {}
    dense = [
        t
        for t, (owner, layer) in enumerate(sources)
        if layer in (owner.mlp_only_layers or ()) or (layer + 1) % owner.decoder_sparse_step
    ]
    return {"mlp_only_layers": dense, "decoder_sparse_step": 1}


def _leading_dense(config: PretrainedConfig, sources: list[Source]) -> dict[str, Any]:
    """DeepSeek's rule: the first `first_k_dense_replace` layers are dense, so dense layers must stay in front."""
    names = [n for n in ("first_k_dense_replace", "num_dense_layers") if isinstance(getattr(config, n, None), int)]
    if not names or getattr(config, "mlp_layer_types", None):
        return {}
    name = names[0]
    dense = [layer < getattr(owner, name) for owner, layer in sources]
    if sorted(dense, reverse=True) != dense:
        kind = config.model_type
        raise PlanError(f"{kind} keeps its dense layers in front ({name}): the plan puts one behind a sparse layer")
    return {name: sum(dense)}


def _window_start(config: PretrainedConfig, sources: list[Source]) -> dict[str, Any]:
    """Qwen's `max_window_layers` only fills in missing `layer_types`; keep it true for programs that read it alone."""
    if not isinstance(getattr(config, "max_window_layers", None), int):
        return {}
    return {"max_window_layers": sum(layer < owner.max_window_layers for owner, layer in sources)}


_PATTERNS: tuple[Callable[[PretrainedConfig, list[Source]], dict[str, Any]], ...] = (
    _gpt_neo,
    _sparse_step,
    _leading_dense,
    _window_start,
)
