"""Layers that get another number: where a block's computation depends on its number, the weights make up for it.

Two families compute by the number of the layer. GPT-2 with `scale_attn_by_inverse_layer_idx` divides the attention
logits of layer i by i + 1; query weights and biases times (new + 1) / (old + 1) undo a move. DiffLlama (arXiv
2410.05258) takes lambda = exp(q1.k1) - exp(q2.k2) + init(i) and scales its attention by 1 - init(i), with init(i) =
0.8 - 0.6 exp(-0.3 i): the output projection takes the scale, and one of q1 and q2 what lambda lost. All other families
say in their configuration what differs between layers, which moves with them, or store it.

A weight is computed in float64 and rounded once to its own type: to about 1e-7 of it in float32, 4e-3 in bfloat16.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor
from transformers import PretrainedConfig

from inheritune.errors import PlanError
from inheritune.layers import ranges
from inheritune.surgery.plan.layer_plan import LayerPlan
from inheritune.surgery.plan.row import LayerRow

Read: TypeAlias = "Callable[[str], Tensor]"
"""Returns the weight of a name in the block that a layer is taken from."""

Change: TypeAlias = "Callable[[Read], Tensor]"
"""Returns a weight of the moved layer, in its own dtype."""

Rule: TypeAlias = "Callable[[str, int, int, Read], Tensor]"
"""Returns the named weight of a block that was layer `old` and becomes layer `new`."""


_SAID = {
    "gpt2": (
        "attention logits / (layer number + 1)",
        "query weights and biases are multiplied by (new number + 1) / (old number + 1)",
    ),
    "diffllama": (
        "an initial lambda by the layer's number",
        "output projections and one lambda vector of each are changed",
    ),
}
"""What a family computes by the number of a layer, and what is done about it."""


def moved_weights(config: PretrainedConfig, plan: LayerPlan) -> dict[str, Change]:
    """Return what gives each weight that a move changes, by `N.NAME`: the new layer's number, the name in its block."""
    changes: dict[str, Change] = {}
    for new, row in moves(plan):
        if row.moved == "keep" and (old := row.source) is not None:
            for name, rule in _rules(config, old, new).items():
                changes[f"{new}.{name}"] = partial(rule, name, old, new)
    return changes


def moved_notes(config: PretrainedConfig, plan: LayerPlan) -> list[str]:
    """Return what a plan does about layers that get another number, a line each; none where it is of no account."""
    if not _rules(config, 1, 0):
        return []
    kind = config.get_text_config(decoder=True).model_type
    formula, remedy = _SAID[kind]
    kept, left = ([new for new, row in moves(plan) if row.moved == how] for how in ("keep", "as-is"))
    notes = []
    if kept:
        done = _layers(kept, "computes what it did", "compute what they did")
        notes.append(f"moved: {done}: {kind} has {formula}; {remedy}")
    if left:
        done = _layers(left, "is left as it is and computes", "are left as they are and compute")
        notes.append(f"moved: {done} something else: {kind} has {formula}")
    return notes


def moves(plan: LayerPlan) -> list[tuple[int, LayerRow]]:
    """Return the layers, by their new number, that had another number where their attention comes from."""
    return [(new, row) for new, row in enumerate(plan) if row.source not in (None, new) and "attention" in row.parts]


def _layers(numbers: list[int], one: str, more: str) -> str:
    return f"layer {numbers[0]} {one}" if len(numbers) == 1 else f"layers {ranges(numbers)} {more}"


def _rules(config: PretrainedConfig, old: int, new: int) -> dict[str, Rule]:
    """Return the rule of each weight of a block that changes between two numbers; none where a block has no number."""
    text = config.get_text_config(decoder=True)
    if text.model_type == "gpt2" and text.scale_attn_by_inverse_layer_idx:
        return {"attn.c_attn.weight": _queries, "attn.c_attn.bias": _queries}
    if text.model_type == "diffllama":
        term = "self_attn.lambda_q1" if old > new else "self_attn.lambda_q2"
        return {"self_attn.o_proj.weight": _output, term: _lambda}
    return {}


def _queries(name: str, old: int, new: int, read: Read) -> Tensor:
    """Scale the queries of GPT-2: the first third of the last dimension, (d_in, 3 d) or (3 d,)."""
    weight = read(name).detach()
    scaled = weight.to(torch.float64, copy=True)
    scaled[..., : weight.shape[-1] // 3] *= (new + 1) / (old + 1)
    return scaled.to(weight.dtype)


def _output(name: str, old: int, new: int, read: Read) -> Tensor:
    """Scale the output projection of DiffLlama, behind the norm that is scaled by 1 - init."""
    weight = read(name).detach()
    return (weight.double() * ((1 - _initial(old)) / (1 - _initial(new)))).to(weight.dtype)


def _lambda(name: str, old: int, new: int, read: Read) -> Tensor:
    """Let lambda of DiffLlama be what it was: exp(q.k) of the term that has to grow takes the difference of init.

    The first term, which adds, grows where init falls, the second, which subtracts, where it rises: the logarithm's
    argument is always positive. q moves along k, the shortest way to the product.
    """
    weight, key = read(name).detach(), read(name.replace("lambda_q", "lambda_k")).detach().double()
    query = weight.double()
    length = float(key @ key)
    if length == 0:
        raise PlanError(
            f"{name} of layer {old} has a key of zeros, so layer {new} cannot compute the same: pass moved='as-is'"
        )
    product = float(query @ key)
    wanted = math.log(math.exp(product) + abs(_initial(old) - _initial(new)))
    return (query + key * ((wanted - product) / length)).to(weight.dtype)


def _initial(layer: int) -> float:
    """Return DiffLlama's initial lambda, as transformers computes it."""
    from transformers.models.diffllama.modeling_diffllama import lambda_init_fn

    return float(lambda_init_fn(layer))
