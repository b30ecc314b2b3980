"""Build a new model from the layers of a trained one; the source is only read.

transformers builds the target from a new configuration (so that layer numbers, KV cache, tied weights and buffers are
right by construction) and initialises it from a seed; then the weights that the plan names are copied in. Buffers that
a checkpoint does not store are computed from the configuration, as loading a checkpoint would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from inheritune.decoder import Decoder, load_config, load_model, open_decoder
from inheritune.errors import PlanError
from inheritune.surgery.build import build_random, copy_weights, take_after, zero_outputs
from inheritune.surgery.config.blueprint import check_fit, packed_weights
from inheritune.surgery.config.target import depth_of, target_config
from inheritune.surgery.moved import moved_weights
from inheritune.surgery.plan.layer_plan import LayerPlan
from inheritune.surgery.repair import check_repairable, repair_gaps
from inheritune.surgery.revive import Revived, heads_to_revive, revived_entries
from inheritune.surgery.width import Width, narrow, narrow_sizes

Source: TypeAlias = PreTrainedModel | str | Path


def inherit(
    model: Source,
    layers: int | str | Iterable[int] | None = None,
    parts: str | Iterable[str] = "all",
    *,
    plan: LayerPlan | None = None,
    target: Source | None = None,
    width: Width | None = None,
    revive: Revived | None = None,
    moved: str | None = None,
    repair: np.ndarray | Tensor | None = None,
    seed: int = 0,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Return a new model made of layers of `model` (Algorithm 1, steps 1 and 2; every initialisation of the paper).

    The embeddings, the final norm, the head and all other weights outside the blocks come from `model`; from `target`
    where the plan keeps any of its layers, because those weights were trained together. What the plan does not copy
    keeps the architecture's own random initialisation at the new depth: the very values of `scratch(..., seed=seed)`.

    Args:
        model: the trained reference: a model, a local folder or a hub id.
        layers: the layers to take, see `LayerPlan.from_layers`; or pass `plan`.
        parts: `"all"` or some of attention, mlp and norms (Table 3).
        plan: where each layer comes from, instead of `layers` and `parts`.
        target: the model being grown or stacked, for plans with rows from `"target"`. A plan whose rows all come from
            `"target"` (stacking) may leave it out: `model` is then stacked on itself.
        width: the share of the heads, hidden units and MLP units that stay, for example `"1/2"` (the baseline half
            width), see `narrow`; without `layers` and `plan` all layers stay.
        revive: heads of `model` whose query and key weights start afresh: what `analyze` returned for it (its collapsed
            heads), the folder of that analysis, or heads by layer; see `LayerPlan.revive`.
        moved: `"keep"` lets layers that get another number compute what they did, in families that compute by it,
            `"as-is"` leaves their weights; None keeps, and with `plan` does what that says. See `LayerPlan.with_moved`.
        repair: windows of tokens, (N, T) integers, to which a linear map for each gap is fitted and folded into the MLP
            before it, see `surgery.repair`; for plans that leave out layers and change nothing else.
        seed: seed of the random initialisation; the global random state is left as it was.
        revision: the branch, tag or commit of `model` on the hub.
        trust_remote_code: run the code that a checkpoint brings along, if it needs any.

    Returns:
        A model of the same class, dtype and device as `model`, in evaluation mode, that shares no memory with it.

    Raises:
        PlanError: the plan does not fit the model; said before any weights are loaded from a folder or the hub.
        ModelError: a model cannot be loaded, is not a decoder or is quantised.
    """
    sources = {"reference": model} if target is None else {"reference": model, "target": target}
    if plan is not None and plan.models == {"target"} and target is None:
        sources["target"] = model
    revisions = {name: revision if source is model else None for name, source in sources.items()}
    configs = {
        name: load_config(source, revision=revisions[name], trust_remote_code=trust_remote_code)
        for name, source in sources.items()
    }
    depth = depth_of(configs["reference"])
    if target is not None and plan is None and width is None:
        raise PlanError("got target= and no plan that takes layers from it: pass plan=LayerPlan.append(...), say")
    if width is not None:
        if "target" in configs:
            raise PlanError("got both target= and width=: a target that grows keeps its width, pass one of them")
        narrow_sizes(configs["reference"], width)
        layers = depth if layers is None and plan is None else layers
    plan = resolve_plan(depth, layers, parts, plan, moved)
    if revive is not None:
        plan = plan.revive(heads_to_revive(revive, depth))
    if repair is not None:
        check_repairable(plan, depth, width)
    config = target_config(configs, plan)
    decoders: dict[str, Decoder] = {
        name: open_decoder(load_model(sources[name], revision=revisions[name], trust_remote_code=trust_remote_code))
        for name in {*plan.models, plan.rest}
    }
    built = _assemble(plan, config, decoders, seed)
    if repair is not None:
        repair_gaps(open_decoder(built), decoders["reference"], plan, repair)
    return built if width is None else narrow(built, width)


def scratch(source: PretrainedConfig | Source, layers: int | None = None, seed: int = 0) -> PreTrainedModel:
    """Return a randomly initialised model of the same architecture (the paper's baseline `scratch`).

    It is in evaluation mode, in the dtype of the source, of which only the configuration is read. `layers` is their
    number, the source's own if None; more than it has continues its layers' pattern. The global random state is left
    as it was.
    """
    config = source if isinstance(source, PretrainedConfig) else load_config(source)
    config = target_config({"reference": config}, LayerPlan.random(depth_of(config) if layers is None else layers))
    if isinstance(source, PreTrainedModel):
        return build_random(type(source)._from_config, config, source.dtype, seed).to(source.device)
    return build_random(AutoModelForCausalLM.from_config, config, config.dtype, seed)


def resolve_plan(
    depth: int,
    layers: int | str | Iterable[int] | None = None,
    parts: str | Iterable[str] = "all",
    plan: LayerPlan | None = None,
    moved: str | None = None,
) -> LayerPlan:
    """Return the plan that either `layers` and `parts` or `plan` stand for, on a reference of `depth` layers.

    `moved` is for all of its layers, see `LayerPlan.with_moved`; None leaves what they say.

    Raises:
        PlanError: neither or both are given, or the layers do not fit the depth.
    """
    if moved is not None:
        return resolve_plan(depth, layers, parts, plan).with_moved(moved)
    if layers is not None and plan is not None:
        raise PlanError("got both layers= and plan=: pass one of them")
    if layers is not None:
        return LayerPlan.from_layers(layers, depth, parts)
    if plan is None:
        raise PlanError(f"no layers given: pass layers= (for example {(depth + 1) // 2}) or plan=")
    if parts != "all":
        raise PlanError("a plan says the parts of each layer itself: pass parts= only with layers=")
    return plan


def _assemble(plan: LayerPlan, config: PretrainedConfig, decoders: Mapping[str, Decoder], seed: int) -> PreTrainedModel:
    """Build the target, confirm that it fits, and copy what the plan names."""
    rest = decoders[plan.rest].model
    target = build_random(type(rest)._from_config, config, rest.dtype, seed)
    new = open_decoder(target)
    check_fit(plan, new, decoders)
    copy_weights(target, _planned(plan, new, decoders))
    if zero := [index for index, row in enumerate(plan) if row.zero_output]:
        zero_outputs(new, zero)
    return take_after(target, rest)


def _planned(plan: LayerPlan, new: Decoder, decoders: Mapping[str, Decoder]) -> Callable[[str, Tensor], Tensor | None]:
    """Return what gives the weight that the plan names for a weight of the target; None if that one stays random."""
    states = {name: decoder.model.state_dict(keep_vars=True) for name, decoder in decoders.items()}
    packed, revived = packed_weights(new), revived_entries(new, plan)
    moved = moved_weights(new.config, plan)

    def weight_of(key: str, place: Tensor) -> Tensor | None:
        origin = plan.origin(key, new.blocks_path)
        if origin is None:
            return None
        state, place_in_list = states[origin[0]], key.removeprefix(f"{new.blocks_path}.")
        weight: Tensor = state[origin[1]].detach()
        if change := moved.get(place_in_list):
            block = origin[1].removesuffix(place_in_list.partition(".")[2])
            weight = change(lambda name: state[block + name])
        if key in packed:
            dim = packed[key]
            slices = {name: each[key].detach().chunk(decoders[name].layers, dim) for name, each in states.items()}
            return _join_slices(place.detach().to(weight).chunk(len(plan), dim), slices, plan, dim)
        entries = revived.get(id(place))
        return weight if entries is None else torch.where(entries.to(weight.device), place.detach().to(weight), weight)

    return weight_of


def _join_slices(own: Sequence[Tensor], slices: Mapping[str, Sequence[Tensor]], plan: LayerPlan, dim: int) -> Tensor:
    """Return a weight that holds a slice for each layer along `dim` (0 or 1): those of the plan.

    `own` are the new model's, which random layers keep, and `slices` those of each source, all of one size.
    """
    joined = [
        own[t] if row.model is None or row.source is None else slices[row.model][row.source]
        for t, row in enumerate(plan)
    ]
    return torch.cat(joined, dim)
