"""The configuration of a target model: its depth, and every field that says something about single layers.

transformers builds the model from its configuration, so this is where a kind of layer (sliding or full attention, RoPE
or none, dense or sparse MLP) moves with its weights. Three shapes of field are known: one entry per layer
(`layer_types`), layer numbers (`mlp_only_layers`), and rules of single families that derive either
(`first_k_dense_replace`). What a configuration does not say at all is found by `blueprint.check_fit`, which compares
the blocks that the new configuration builds.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from transformers import PretrainedConfig

from inheritune.errors import ModelError, PlanError, library_errors
from inheritune.surgery.plan.layer_plan import LayerPlan

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
    check_families(configs.values())
    for text in texts.values():
        _refuse_counted_twice(text)
    plan.check({name: depth_of(text) for name, text in texts.items()})
    new = copy.deepcopy(configs[plan.rest])
    with library_errors(f"no {new.model_type} configuration can say this plan", kind=PlanError):
        text, rest = new.get_text_config(decoder=True), texts[plan.rest]
        sources = [
            (rest, t % depth_of(rest)) if row.model is None or row.source is None else (texts[row.model], row.source)
            for t, row in enumerate(plan)
        ]
        fields = set_layers(text, sources)
        check_lenders(text, sources)
        _check_reload(new, fields)
    return new


def check_families(configs: Iterable[PretrainedConfig]) -> None:
    """Refuse, by a PlanError, models of different families, between which no layer can be moved."""
    if len(kinds := sorted({config.get_text_config(decoder=True).model_type for config in configs})) > 1:
        raise PlanError(f"reference and target are of different families ({' and '.join(kinds)}): expected the same")


def _refuse_counted_twice(config: PretrainedConfig) -> None:
    """Refuse a family whose `num_hidden_layers` counts something smaller than its blocks (LongCat-Flash)."""
    blocks = getattr(config, "num_layers", None)
    if "num_layers" not in config.attribute_map.values() and isinstance(blocks, int) and blocks != depth_of(config):
        raise PlanError(
            f"{config.model_type} has {blocks} blocks and counts {depth_of(config)} layers in them: its layers cannot "
            "be taken apart one by one"
        )


def set_layers(config: PretrainedConfig, sources: list[Source]) -> list[str]:
    """Make `config` describe a decoder whose layer t is `sources[t]`; return the names of the fields that were set."""
    taken: dict[str, Any] = {}
    for name, value in config.to_dict().items():
        listed = isinstance(value, list | tuple) and len(value) == config.num_hidden_layers
        # A list of token ids may be as long by chance.
        if listed and name not in (*LAYER_NUMBERS, *NOT_LAYERS) and not name.endswith("_token_id"):
            taken[name] = [entry_of(source, name) for source in sources]
    for name in LAYER_NUMBERS:
        if isinstance(getattr(config, name, None), list):
            taken[name] = [t for t, (owner, layer) in enumerate(sources) if layer in (getattr(owner, name) or ())]
    for rule in _RULES:
        taken |= rule(config, sources)
    settings = [numbered(owner).get(layer) for owner, layer in sources]
    if any(settings) or numbered(config):
        setattr(config, NUMBERED, None)  # its numbers are checked against the depth
        taken[NUMBERED] = {t: values for t, values in enumerate(settings) if values}
    config.num_hidden_layers = len(sources)
    for name, value in taken.items():
        setattr(config, name, value)
    return ["num_hidden_layers", *taken]


def refuse_quantised(config: PretrainedConfig) -> None:
    """Refuse a quantised model: its layers hold packed integers and scales that no training can heal."""
    texts = (config, config.get_text_config(decoder=True))
    names = ("quantization_config", "compression_config")
    quantisation = next(filter(None, (getattr(each, name, None) for each in texts for name in names)), None)
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
        one, two = (numbered(each) if name == NUMBERED else getattr(each, name, None) for each in (again, text))
        if one != two:
            raise PlanError(
                f"a saved {config.model_type} configuration would lose {name!r} of this plan: not supported"
            )


def entry_of(source: Source, name: str) -> Any:
    """Return what the per-layer field `name` says of a layer; a PlanError where its model has no such list."""
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


def _follow_from_the_list(config: PretrainedConfig, sources: list[Source]) -> dict[str, Any]:
    """Return the fields that any list of layers has a value for."""
    taken: dict[str, Any] = {}
    if hasattr(config, "attention_types") and hasattr(config, "attention_layers"):  # GPT-Neo derives the list of kinds
        taken["attention_types"] = [[[entry_of(source, "attention_layers")], 1] for source in sources]
    if isinstance(getattr(config, "block_types", None), list | tuple):  # RecurrentGemma repeats it until it is enough
        taken["block_types"] = [owner.block_types[layer % len(owner.block_types)] for owner, layer in sources]
    if getattr(config, "num_blocks", None) == depth_of(config):  # XLSTM says its depth twice
        taken["num_blocks"] = len(sources)
    # Qwen's only fills in missing `layer_types`; keep it true for programs that read it alone.
    if isinstance(getattr(config, "max_window_layers", None), int):
        taken["max_window_layers"] = sum(layer < owner.max_window_layers for owner, layer in sources)
    # MiniCPM scales each branch by this over the root of the depth: keep the quotient of the training.
    if hasattr(config, "scale_depth") and depth_of(config) != len(sources):
        taken["scale_depth"] = config.scale_depth * math.sqrt(len(sources) / depth_of(config))
    # Layers that predict further tokens (DeepSeek's, GLM's) are left out with their weights, so none is counted.
    counts = (name for name in config.to_dict() if re.fullmatch(r"num_(nextn_predict|mtp)_layers|mtp_num_\w+", name))
    return taken | {name: 0 for name in counts if getattr(config, name, None)}


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


def _sparse_span(config: PretrainedConfig, sources: list[Source]) -> dict[str, Any]:
    """ERNIE's rule: layer i is sparse from a start to an end index, both included, if an interval divides i + 1."""
    names = ("moe_layer_interval", "moe_layer_start_index", "moe_layer_end_index")
    if not all(isinstance(getattr(config, name, None), int) for name in names):
        return {}

    def is_sparse(layer: int, interval: int, start: int, end: int) -> bool:
        return (layer + 1) % interval == 0 and start <= layer <= end

    depth = len(sources)
    sparse = [is_sparse(layer, *(getattr(owner, name) for name in names)) for owner, layer in sources]
    start, end = (sparse.index(True), depth - 1 - sparse[::-1].index(True)) if any(sparse) else (depth, depth)
    for interval in range(1, depth + 1):
        if sparse == [is_sparse(t, interval, start, end) for t in range(depth)]:
            return dict(zip(names, (interval, start, end), strict=True))
    raise PlanError(f"{config.model_type} has its sparse layers at a fixed interval ({names[0]}): the plan has not")


def _periods(config: PretrainedConfig, sources: list[Source]) -> dict[str, Any]:
    """Jamba's rule: layer i has attention (or experts) if i modulo a period is an offset."""
    taken: dict[str, Any] = {}
    for kind in ("attn", "expert"):
        names = (f"{kind}_layer_period", f"{kind}_layer_offset")
        if not all(hasattr(config, name) for name in names) or "layers_block_type" in config.to_dict():
            continue  # Zamba derives a list from its period once, and saves the list
        given = [(getattr(owner, names[0]), getattr(owner, names[1])) for owner, _ in sources]
        wanted = [layer % period == offset for (_, layer), (period, offset) in zip(sources, given, strict=True)]
        choices = [given[0], *((p, o) for p in range(1, len(sources) + 2) for o in range(p))]
        fitting = next((c for c in choices if wanted == [t % c[0] == c[1] for t in range(len(sources))]), None)
        if fitting is None:
            raise PlanError(
                f"{config.model_type} repeats its kinds of layers with a period ({names[0]}): the plan has none"
            )
        taken |= dict(zip(names, fitting, strict=True))
    return taken


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


def _borrowed_keys(config: PretrainedConfig, sources: list[Source]) -> dict[str, Any]:
    """Gemma's rule: the last `num_kv_shared_layers` layers borrow keys and values, so they must stay at the end."""
    if not any(getattr(owner, "num_kv_shared_layers", 0) for owner, _ in sources):
        return {}
    borrow = [layer >= depth_of(owner) - owner.num_kv_shared_layers for owner, layer in sources]
    if sorted(borrow) != borrow:
        raise PlanError(
            f"{config.model_type} keeps the layers that share keys and values at the end (num_kv_shared_layers): "
            "the plan puts another layer behind one"
        )
    return {"num_kv_shared_layers": sum(borrow)}


def _shared_blocks(config: PretrainedConfig, sources: list[Source]) -> dict[str, Any]:
    """Zamba 2 uses few attention blocks in turn, the n-th use with the n-th adapter: uses must keep their numbers."""
    if not hasattr(config, "num_mem_blocks"):
        return {}
    uses = [(owner, layer) for owner, layer in sources if layer in owner.hybrid_layer_ids]
    kept, owners = [layer for _, layer in uses], {id(owner) for owner, _ in uses}
    if uses and (len(owners) > 1 or kept != uses[0][0].hybrid_layer_ids[: len(kept)]):
        raise PlanError(
            f"{config.model_type} shares its attention blocks among layers {uses[0][0].hybrid_layer_ids} in turn: "
            f"the plan keeps {kept} of them, expected the first ones in order, all of one model"
        )
    return {}


_RULES = (_follow_from_the_list, _sparse_step, _sparse_span, _periods, _leading_dense, _borrowed_keys, _shared_blocks)


def check_lenders(config: PretrainedConfig, sources: list[Source]) -> None:
    """Confirm that each layer that uses another's keys and values, or choice of tokens, still uses the same layer's.

    In growth that is the layer of the same number of the target, whose hidden states the layer gets as well.
    """
    for t, (owner, layer) in enumerate(sources):
        lender = lender_of(owner, layer)
        if lender is None:
            continue
        place = lender_of(config, t)
        if place is None or place < 0 or sources[place][1] != lender:
            raise PlanError(
                f"layer {layer} of the {config.model_type} uses what layer {lender} computed: "
                f"keep layer {lender} before it, with none between that would take its place"
            )


def lender_of(config: PretrainedConfig, layer: int) -> int | None:
    """Return the layer whose keys and values, or choice of tokens, `layer` uses; None: its own; -1: there is none.

    Gemma 3n and 4: the last `num_kv_shared_layers` layers use the keys and values of the last layer before them that
    has their type. GLM-DSA and HY 4: a layer of type `shared` uses the tokens that the last `full` one before it chose.
    """
    own = depth_of(config) - (getattr(config, "num_kv_shared_layers", 0) or 0)
    if layer >= own:
        return max((i for i in range(own) if config.layer_types[i] == config.layer_types[layer]), default=-1)
    kinds = getattr(config, "indexer_types", None)
    if kinds and kinds[layer] == "shared":
        return max((i for i in range(layer) if kinds[i] == "full"), default=-1)
    return None
