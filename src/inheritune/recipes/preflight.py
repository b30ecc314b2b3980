"""What a recipe costs, before anything is downloaded, prepared or trained: depth, parameters, memory, time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from inheritune.decoder import count_parameters, load_config
from inheritune.decoder.source import resolve_model
from inheritune.recipes.schema import Recipe
from inheritune.recipes.workspace import check_against, inherited_plan
from inheritune.surgery import LayerPlan, blueprint
from inheritune.surgery.width import HALF, narrow_config

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

TRAINING_BYTES = 16
"""Bytes a trained parameter takes: float32 weight, gradient and AdamW's two moments."""
PRODUCTS, TRIALS = 8, 12
"""Matrix products of one timing, and timings, of which the shortest counts: the others shared the machine."""
UTILISATION = 0.3
"""Share of the matrix product's rate that training is assumed to reach; the quickstart's rounds on a CPU do."""


def preflight(recipe: Recipe) -> dict[str, Any]:
    """Return what running `recipe` would take, at worst: all rounds of growth.

    Only the reference's configuration is read. Memory counts weights, gradients, AdamW's moments, the reference and the
    logits of a micro-batch, not activations inside the blocks. Time is the training arithmetic (6 operations per weight
    and token, 12 per layer, position and hidden unit for attention) at a matrix product's rate measured here and now on
    the model's own shapes, times `UTILISATION`: an order of magnitude, not a promise.

    Raises:
        InherituneError: the recipe does not fit its reference.
    """
    plans, config = _plans(recipe)
    reference = 0 if recipe.reference is None else count_parameters(blueprint(config))
    if recipe.method == "half-width":
        config = narrow_config(config, recipe.width or HALF)
    settings = recipe.training
    tokens = settings.steps * settings.tokens_per_step
    rounds = []
    rate = _product_rate(config.get_text_config(decoder=True).hidden_size, settings.tokens_per_step)
    for layers in plans:
        model = blueprint(_with_depth(config, layers))
        operations = tokens * _operations_per_token(model, settings.length)
        rounds.append(
            {
                "layers": layers,
                "parameters": count_parameters(model),
                "tokens": tokens,
                "seconds": operations / (rate * UTILISATION),
            }
        )
    logits = (settings.micro_batch or settings.batch) * settings.length * _vocabulary(config) * 4
    need = max(item["parameters"] for item in rounds) * TRAINING_BYTES + reference * 4 + 2 * logits
    return {
        "kind": "plan",
        "name": recipe.name,
        "method": recipe.method,
        "rounds": rounds,
        "tokens": tokens * len(rounds),
        "seconds": sum(item["seconds"] for item in rounds),
        "memory_bytes": need,
        "memory_available_bytes": _available_memory(),
    }


def _plans(recipe: Recipe) -> tuple[list[int], PretrainedConfig]:
    """Return the depth of each round, all rounds of growth included, and the configuration to scale."""
    if recipe.reference is None:
        from transformers import AutoConfig

        config = AutoConfig.for_model(**(recipe.architecture or {}))
        return [int(config.num_hidden_layers)], config
    config = load_config(resolve_model(recipe.reference))
    check_against(recipe, config)
    depth = int(config.get_text_config(decoder=True).num_hidden_layers)
    count = len(inherited_plan(recipe, depth))
    if recipe.method in ("stacking", "hybrid-stacking"):
        return [count // 2, count], config
    if recipe.method != "inheritune":
        return [count], config
    limit = min(recipe.growth.max_layers or depth, depth)
    depths = [count, *range(count + recipe.growth.by, limit, recipe.growth.by), limit] if count < limit else [count]
    return depths[: recipe.growth.max_rounds], config


def _with_depth(config: PretrainedConfig, layers: int) -> PretrainedConfig:
    from inheritune.surgery.config.target import target_config

    return target_config({"reference": config}, LayerPlan.random(layers))


def _operations_per_token(model: PreTrainedModel, length: int) -> float:
    text = model.config.get_text_config(decoder=True)
    return 6.0 * count_parameters(model) + 12.0 * text.num_hidden_layers * length * text.hidden_size


def _vocabulary(config: PretrainedConfig) -> int:
    return int(config.get_text_config(decoder=True).vocab_size)


def _product_rate(hidden: int, tokens: int) -> float:
    """Measure the rate of a block's matrix product, tokens x hidden by hidden x 4 hidden, in operations a second."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    left = torch.randn(min(tokens, 16384), hidden, device=device, dtype=dtype)
    right = torch.randn(hidden, 4 * hidden, device=device, dtype=dtype)
    operations = 2.0 * left.shape[0] * right.shape[1] * hidden * PRODUCTS
    return operations / min(_seconds(left, right) for _ in range(TRIALS))


def _seconds(left: torch.Tensor, right: torch.Tensor) -> float:
    """Time `PRODUCTS` matrix products, one after the other."""
    import torch

    start = time.perf_counter()
    for _ in range(PRODUCTS):
        left @ right
    if left.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _available_memory() -> int:
    """Return the free memory of the device that would train, in bytes."""
    import psutil
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    return int(psutil.virtual_memory().available)
