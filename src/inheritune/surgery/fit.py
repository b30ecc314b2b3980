"""Does the model that the new configuration builds have, layer by layer, the blocks the plan copies?

A configuration can hide what makes layers differ (a bias in the last block only, a norm missing in the first). Weights
copied onto another kind of block would load or run wrongly, in silence; so every copied block is compared with its
source: modules, shapes and settings. Only shapes are read, so models on the meta device will do.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from inheritune.decoder import Decoder, open_decoder
from inheritune.errors import PlanError
from inheritune.surgery.config import target_config, unsayable

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

    from inheritune.surgery.plan import LayerPlan

_POSITION = ("layer_idx", "layer_id", "layer_number", "block_idx", "num_hidden_layers")
"""Settings that say a block's place in the model, or its depth; they follow the place, not the weights."""


def blueprint(config: PretrainedConfig) -> PreTrainedModel:
    """Return the model that `config` describes with shapes but no weights (meta device); no memory is needed.

    Raises:
        PlanError: transformers cannot build it.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"), unsayable(config):
        return AutoModelForCausalLM.from_config(copy.deepcopy(config))


def draft(config: PretrainedConfig, plan: LayerPlan) -> tuple[PretrainedConfig, Decoder, Decoder]:
    """Return the target's configuration, and weightless source and target models, after confirming that they fit.

    Args:
        config: the reference's configuration.
        plan: where each layer comes from; rows from `"target"` are not possible here.

    Raises:
        PlanError: see `target_config` and `check_fit`.
        ModelError: the model is quantised, or its blocks cannot be found.
    """
    new_config = target_config({"reference": config}, plan)
    source, target = open_decoder(blueprint(config)), open_decoder(blueprint(new_config))
    check_fit(plan, target, {"reference": source})
    return new_config, source, target


def check_fit(plan: LayerPlan, target: Decoder, sources: Mapping[str, Decoder]) -> None:
    """Confirm that `target` can take the layers that `plan` names from `sources`.

    Raises:
        PlanError: a block or a weight outside the blocks differs in modules, shapes or settings; or the family keeps
            other per-layer weights outside its blocks.
    """
    _check_rest(plan, target, sources[plan.rest])
    signatures: dict[tuple[str, int], dict[str, Any]] = {}
    for index, row in enumerate(plan):
        if row.model is None or row.source is None:
            continue
        place = (row.model, row.source)
        if place not in signatures:
            signatures[place] = block_signature(sources[row.model].blocks[row.source])
        difference = _difference(signatures[place], block_signature(target.blocks[index]))
        if difference:
            raise PlanError(f"layer {row.source} of the {row.model} does not fit as layer {index}: {difference}")


def block_signature(block: nn.Module) -> dict[str, Any]:
    """Return what makes a block's kind: the class and plain settings of its modules and the shape of each weight.

    Floats are left out: some depend on the block's place by design (DiffLlama's initial lambda).
    """
    signature: dict[str, Any] = {f"{key} shape": tuple(value.shape) for key, value in block.state_dict().items()}
    for name, module in block.named_modules():
        signature[f"{name} class"] = type(module).__name__
        for setting, value in vars(module).items():
            if isinstance(value, bool | int | str | None) and not setting.startswith("_"):
                signature[f"{name}.{setting}".lstrip(".")] = value
    for key in list(signature):
        if key.rsplit(".", 1)[-1] in (*_POSITION, "training"):
            del signature[key]
    return signature


def _check_rest(plan: LayerPlan, target: Decoder, source: Decoder) -> None:
    name = type(source.model).__name__
    if target.blocks_path != source.blocks_path:
        raise PlanError(f"{name} keeps its blocks in {source.blocks_path}, the target in {target.blocks_path}")
    wanted, found = _outside_shapes(target), _outside_shapes(source)
    if difference := _difference(found, wanted):
        raise PlanError(f"{name} has weights outside its blocks that depend on the depth: {difference}")
    if [row.source for row in plan] != list(range(source.layers)) and (other := _other_list(target, source)):
        raise PlanError(f"{name} keeps weights of its layers in {other} beside {source.blocks_path}: not supported")


def _outside_shapes(decoder: Decoder) -> dict[str, Any]:
    prefix = f"{decoder.blocks_path}."
    return {k: tuple(v.shape) for k, v in decoder.model.state_dict().items() if not k.startswith(prefix)}


def _other_list(target: Decoder, source: Decoder) -> str | None:
    """Return the name of a list of modules outside the blocks that is as long as each model is deep."""
    from torch import nn

    lengths = {n: len(m) for n, m in target.model.named_modules() if isinstance(m, nn.ModuleList)}
    for name, module in source.model.named_modules():
        outside = isinstance(module, nn.ModuleList) and not f"{name}.".startswith(f"{source.blocks_path}.")
        if outside and len(module) == source.layers and lengths.get(name) == target.layers:
            return name
    return None


def _difference(source: Mapping[str, Any], target: Mapping[str, Any]) -> str:
    """Name the first entry in which two signatures differ, or return an empty string."""
    for key in sorted(source.keys() | target.keys()):
        if source.get(key, "absent") != target.get(key, "absent"):
            return f"{key} is {source.get(key, 'absent')} there and {target.get(key, 'absent')} here"
    return ""
