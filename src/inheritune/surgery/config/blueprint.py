"""Does the model that the new configuration builds have, layer by layer, the blocks the plan copies?

A configuration can hide what makes layers differ (a bias in the last block only, a norm missing in the first). Weights
copied onto another kind of block would load or run wrongly, in silence; so every copied block is compared with its
source: modules, shapes and settings. Only shapes are read, so models on the meta device will do.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from inheritune.decoder import Decoder, count_parameters, open_decoder
from inheritune.decoder.loading import build_empty
from inheritune.errors import PlanError, library_errors
from inheritune.records.surgery import ParameterCounts
from inheritune.surgery.config.target import target_config
from inheritune.surgery.moved import moved_notes, moves
from inheritune.surgery.plan.layer_plan import LayerPlan

_PLACE = (
    "layer_idx", "layer_id", "layer_number", "block_idx", "num_hidden_layers", "num_fwd_mem_blocks", "lambda_init",
)  # fmt: skip
"""Settings that say a block's place in the model, or its depth; they follow the place, not the weights.

DiffLlama's initial lambda is a formula of the place, and so is the scale of attention with GPT-2's
`scale_attn_by_inverse_layer_idx`; `surgery.moved` makes up for them.
"""

_FORMULAS = ("lambda_init", "scaling")
"""Settings that a family may compute from the place."""

_PASSING = ("training", "gradient_checkpointing", "p", "store_full_length_kv", "next_skip_topk")
"""Settings of the moment (a dropout's share `p` too), and what a block stores for others, which changes it not."""

_ADAPTER = re.compile(r"_adapter_list\.\d+")
"""Zamba 2 keeps one adapter for each use of a shared block; `config` sees to it that they keep their order."""


def blueprint(config: PretrainedConfig) -> PreTrainedModel:
    """Return the model that `config` describes with shapes but no weights (meta device); no memory is needed.

    Raises:
        PlanError: transformers cannot build it.
    """
    origin = f" of {config.name_or_path}/config.json" if config.name_or_path else ""  # a recipe's has no file
    with library_errors(f"cannot build the {config.model_type}{origin}", kind=PlanError):
        return build_empty(config)


@dataclass(frozen=True)
class Draft:
    """A new model worked out from configurations alone, all models in it on the meta device.

    Attributes:
        plan: where each layer comes from.
        config: the new model's configuration.
        new: the new model.
        sources: the models that the plan takes layers from, `"reference"` always among them.
    """

    plan: LayerPlan
    config: PretrainedConfig
    new: Decoder
    sources: Mapping[str, Decoder]

    @classmethod
    def of(cls, plan: LayerPlan, config: PretrainedConfig, target: PretrainedConfig | None = None) -> Draft:
        """Work out the new model, after confirming that the layers fit.

        `config` is the reference's and `target` that of the model being grown; a plan whose rows all come from there
        (stacking) may leave it out: the reference is then stacked on itself.

        Raises:
            PlanError: see `target_config` and `check_fit`.
            ModelError: a model is quantised, or its blocks cannot be found.
        """
        configs = {"reference": config}
        if "target" in plan.models and (target is not None or plan.models == {"target"}):
            configs["target"] = config if target is None else target
        new_config = target_config(configs, plan)
        sources = {name: open_decoder(blueprint(each)) for name, each in configs.items()}
        new = open_decoder(blueprint(new_config))
        check_fit(plan, new, sources)
        return cls(plan, new_config, new, sources)

    @property
    def parameters(self) -> ParameterCounts:
        """The numbers of parameters before and after; before is the target where one grows, else the reference."""
        before = count_parameters(self.sources[self.plan.rest].model)
        return ParameterCounts(before=before, after=count_parameters(self.new.model))

    @property
    def notes(self) -> list[str]:
        """What is done about layers that get another number, a line each; none where it is of no account."""
        differing = {
            name.rpartition(".")[2]
            for new, row in moves(self.plan)
            for name, _ in _formulas(self.new.blocks[new])
            ^ _formulas(self.sources[row.model or "reference"].blocks[row.source or 0])
        }
        if not differing:
            return []
        kind, which = self.config.model_type, ", ".join(sorted(differing))
        unknown = f"moved: layers compute something else: {kind} takes {which} from a layer's number"
        return moved_notes(self.config, self.plan) or [unknown]

    def check_copyable(self) -> None:
        """Confirm that the sources' files hold all there is to write, weights of moved layers apart.

        Raises:
            PlanError: the plan sets weights anew, or the family's files cannot say it.
        """
        if not self.plan.copies_all:
            raise PlanError("this plan sets weights anew (random, or to zero): use inherit, which builds the model")
        for decoder in (self.sources["reference"], self.new):
            _refuse_shared_layers(decoder)
        packed = packed_weights(self.new)
        if packed and [row.source for row in self.plan] != list(range(self.sources["reference"].layers)):
            name = type(self.new.model).__name__
            raise PlanError(f"{name} keeps a slice for each layer in {min(packed)}: use inherit, which takes it apart")


def _refuse_shared_layers(decoder: Decoder) -> None:
    """Refuse a model whose layers share weights: its files hold them once, under one of the layers' names."""
    owners: dict[int, tuple[int, str]] = {}
    for layer, block in enumerate(decoder.blocks):
        for name, weight in block.state_dict(prefix=decoder.block_prefix(layer), keep_vars=True).items():
            owner, first = owners.setdefault(id(weight), (layer, name))
            if owner != layer:
                family = type(decoder.model).__name__
                raise PlanError(f"layers of {family} share weights ({first} and {name}): use inherit")


def check_fit(plan: LayerPlan, target: Decoder, sources: Mapping[str, Decoder]) -> None:
    """Confirm that `target` can take the layers that `plan` names from `sources`.

    Raises:
        PlanError: a block or a weight outside the blocks differs in modules, shapes or settings; or the family keeps
            other per-layer weights outside its blocks.
    """
    _check_rest(plan, target, sources[plan.rest])
    wanted = _outside_shapes(target)
    for name, source in sources.items():
        for key in packed_weights(source):
            if (found := _outside_shapes(source)[key]) != wanted.get(key):
                raise PlanError(f"{key} has slices of {found} in the {name}, expected {wanted.get(key)}")
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
    """Return what makes a block's kind: the class and plain settings of its modules and the shape of each weight."""
    signature: dict[str, Any] = {f"{key} shape": tuple(value.shape) for key, value in block.state_dict().items()}
    for name, module in block.named_modules():
        signature[f"{name} class"] = type(module).__name__
        for setting, value in vars(module).items():
            if isinstance(value, bool | int | float | str) and not setting.startswith("_"):
                signature[f"{name}.{setting}".lstrip(".")] = value
    left_out: tuple[str, ...] = _PASSING + _PLACE
    if any(getattr(module, "scale_attn_by_inverse_layer_idx", False) for module in block.modules()):
        left_out += ("scaling",)
    return {k: v for k, v in signature.items() if k.rsplit(".", 1)[-1] not in left_out and not _ADAPTER.search(k)}


def _formulas(block: nn.Module) -> set[tuple[str, float]]:
    """Return the settings of a block's modules that may be computed from its place, by name."""
    found = (
        (f"{name}.{each}", getattr(module, each, None)) for name, module in block.named_modules() for each in _FORMULAS
    )
    return {(name, value) for name, value in found if isinstance(value, float)}


def packed_weights(decoder: Decoder) -> dict[str, int]:
    """Return the weights outside the blocks that hold a slice for each layer side by side, and the slices' dimension.

    Gemma 3n and 4 look up and project an input for each layer in one matrix, `hidden_size_per_layer_input` wide for
    each. Such a weight is neither copied whole nor found by its shape where a plan permutes all layers.
    """
    width = getattr(decoder.config, "hidden_size_per_layer_input", None) or 0
    packed: dict[str, int] = {}
    for name, module in decoder.model.named_modules():
        if "per_layer" not in name or name.startswith(f"{decoder.blocks_path}."):
            continue
        if isinstance(module, nn.Embedding) and module.embedding_dim == decoder.layers * width:
            packed[f"{name}.weight"] = 1
        elif isinstance(module, nn.Linear) and module.out_features == decoder.layers * width:
            packed[f"{name}.weight"] = 0
    return packed


def _check_rest(plan: LayerPlan, target: Decoder, source: Decoder) -> None:
    name = type(source.model).__name__
    if target.blocks_path != source.blocks_path:
        raise PlanError(f"{name} keeps its blocks in {source.blocks_path}, the target in {target.blocks_path}")
    if getattr(source.model.base_model, "layers_are_rescaled", False):
        raise PlanError(
            f"{name} has divided its weights for inference: load it anew and pass it before its first forward"
        )
    wanted, found = _outside_shapes(target), _outside_shapes(source)
    if difference := _difference(found, wanted):
        raise PlanError(f"{name} has weights outside its blocks that depend on the depth: {difference}")
    if [row.source for row in plan] != list(range(source.layers)) and (other := _other_list(target, source)):
        raise PlanError(f"{name} keeps weights of its layers in {other} beside {source.blocks_path}: not supported")


def _outside_shapes(decoder: Decoder) -> dict[str, Any]:
    """Return the shapes of the weights outside the blocks; of one that holds a slice for each layer, of the slices."""
    prefix = f"{decoder.blocks_path}."
    shapes = {k: tuple(v.shape) for k, v in decoder.model.state_dict().items() if not k.startswith(prefix)}
    for key, dimension in packed_weights(decoder).items():
        sizes = list(shapes[key])
        sizes[dimension] //= decoder.layers
        shapes[key] = tuple(sizes)
    return shapes


def _other_list(target: Decoder, source: Decoder) -> str | None:
    """Return the name of a list of modules outside the blocks that is as long as each model is deep."""
    lengths = {n: len(m) for n, m in target.model.named_modules() if isinstance(m, nn.ModuleList)}
    for name, module in source.model.named_modules():
        outside = isinstance(module, nn.ModuleList) and not f"{name}.".startswith(f"{source.blocks_path}.")
        if outside and len(module) == source.layers and lengths.get(name) == target.layers:
            return name
    return None


def _difference(source: Mapping[str, Any], target: Mapping[str, Any]) -> str:
    """Name the first entry in which two signatures differ, or return an empty string."""
    for key in sorted(source.keys() | target.keys()):
        one, two = source.get(key), target.get(key)
        near = isinstance(one, float) and isinstance(two, float) and math.isclose(one, two, rel_tol=1e-12)
        if one != two and not near:
            return f"{key} is {source.get(key, 'absent')} there and {target.get(key, 'absent')} here"
    return ""
