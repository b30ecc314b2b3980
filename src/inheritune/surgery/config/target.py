"""The configuration of a target model: its depth, and every field that says something about single layers.

transformers builds the model from its configuration, so this is where a layer's kind (sliding or full attention, RoPE
or none, dense or sparse MLP) moves with its weights. What a configuration does not say at all is found by
`blueprint.check_fit`, which compares the blocks that the new configuration builds.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from inheritune.errors import ModelError, PlanError, library_errors
from inheritune.surgery.config.families import check_lenders, family_fields
from inheritune.surgery.config.fields import (
    LAYER_NUMBERS,
    NUMBERED,
    Source,
    depth_of,
    entry_of,
    numbered,
    per_layer_fields,
)

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from inheritune.surgery.plan.layer_plan import LayerPlan


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
        text, sources = new.get_text_config(decoder=True), _sources(texts, plan)
        fields = set_layers(text, sources)
        check_lenders(text, sources)
        _check_reload(new, fields)
    return new


def check_families(configs: Iterable[PretrainedConfig]) -> None:
    """Refuse models of different families, between which no layer can be moved.

    Raises:
        PlanError: naming the families.
    """
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
    fields = [name for name in per_layer_fields(config) if name not in LAYER_NUMBERS]
    taken: dict[str, Any] = {name: [entry_of(source, name) for source in sources] for name in fields}
    for name in LAYER_NUMBERS:
        if isinstance(getattr(config, name, None), list):
            taken[name] = [t for t, (owner, layer) in enumerate(sources) if layer in (getattr(owner, name) or ())]
    taken |= family_fields(config, sources)
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


def _sources(texts: Mapping[str, PretrainedConfig], plan: LayerPlan) -> list[Source]:
    rest = texts[plan.rest]
    depth = depth_of(rest)
    return [
        (rest, index % depth) if row.model is None or row.source is None else (texts[row.model], row.source)
        for index, row in enumerate(plan)
    ]
