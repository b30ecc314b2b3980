"""What single families say of their layers by a rule: how each rule is written for a new list of layers.

Layers that use what another layer computed (shared keys and values) must keep that layer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from inheritune.errors import PlanError
from inheritune.surgery.config.fields import Source, depth_of, entry_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def family_fields(config: PretrainedConfig, sources: list[Source]) -> dict[str, Any]:
    """Return the fields with which `config` says by its family's rules that layer t is `sources[t]`.

    Raises:
        PlanError: no value of a rule's fields can say it.
    """
    return {name: value for rule in _RULES for name, value in rule(config, sources).items()}


def _gpt_neo(config: PretrainedConfig, sources: list[Source]) -> dict[str, Any]:
    """GPT-Neo saves `attention_types`, from which it derives the list that the model reads."""
    if not hasattr(config, "attention_types") or not hasattr(config, "attention_layers"):
        return {}
    return {"attention_types": [[[entry_of(source, "attention_layers")], 1] for source in sources]}


def _cycled_kinds(config: PretrainedConfig, sources: list[Source]) -> dict[str, Any]:
    """RecurrentGemma repeats `block_types` until there are enough."""
    if not isinstance(getattr(config, "block_types", None), list | tuple):
        return {}
    return {"block_types": [owner.block_types[layer % len(owner.block_types)] for owner, layer in sources]}


def _second_count(config: PretrainedConfig, sources: list[Source]) -> dict[str, Any]:
    """XLSTM says its depth twice."""
    return {"num_blocks": len(sources)} if getattr(config, "num_blocks", None) == depth_of(config) else {}


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


def _window_start(config: PretrainedConfig, sources: list[Source]) -> dict[str, Any]:
    """Qwen's `max_window_layers` only fills in missing `layer_types`; keep it true for programs that read it alone."""
    if not isinstance(getattr(config, "max_window_layers", None), int):
        return {}
    return {"max_window_layers": sum(layer < owner.max_window_layers for owner, layer in sources)}


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


def _branch_scale(config: PretrainedConfig, sources: list[Source]) -> dict[str, Any]:
    """MiniCPM scales each branch by `scale_depth` over the root of the depth: keep the quotient of the training."""
    depth = depth_of(config)
    if not hasattr(config, "scale_depth") or depth == len(sources):
        return {}
    return {"scale_depth": config.scale_depth * math.sqrt(len(sources) / depth)}


def _prediction_layers(config: PretrainedConfig, sources: list[Source]) -> dict[str, Any]:
    """Layers that predict further tokens (DeepSeek's, GLM's) are left out with their weights, so none is counted."""
    counts = (name for name in config.to_dict() if re.fullmatch(r"num_(nextn_predict|mtp)_layers|mtp_num_\w+", name))
    return {name: 0 for name in counts if getattr(config, name, None)}


_RULES: tuple[Callable[[PretrainedConfig, list[Source]], dict[str, Any]], ...] = (
    _gpt_neo,
    _cycled_kinds,
    _second_count,
    _sparse_step,
    _sparse_span,
    _periods,
    _leading_dense,
    _window_start,
    _borrowed_keys,
    _shared_blocks,
    _branch_scale,
    _prediction_layers,
)


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
