"""Inheritune and its baselines (paper, Algorithm 1 and App. D): each a short sequence of rounds over layer plans."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from inheritune.errors import RecipeError
from inheritune.recipes.rounds import load_round, run_round
from inheritune.recipes.workspace import Workspace
from inheritune.surgery import LayerPlan, inherit, scratch
from inheritune.surgery.width import HALF, narrow
from inheritune.training import DistillationLoss

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

Record = dict[str, Any]


def run_inheritune(workspace: Workspace) -> list[Record]:
    """Inherit the first layers, train, and grow while the target is worse than the reference (Algorithm 1)."""
    recipe, plan = workspace.recipe, workspace.plan
    seed = recipe.seed
    rounds = [run_round(workspace, 1, lambda: inherit(workspace.reference, plan=plan, seed=seed), plan, [])]
    while (depth := _next_depth(workspace, rounds)) is not None:
        growth = LayerPlan.append(rounds[-1]["layers"], depth, recipe.growth.mode, recipe.growth.zero_output)
        target = rounds[-1]

        def grow(growth: LayerPlan = growth, target: Record = target) -> PreTrainedModel:
            return inherit(workspace.reference, plan=growth, target=load_round(workspace, target), seed=seed)

        rounds.append(run_round(workspace, len(rounds) + 1, grow, growth, rounds))
    return rounds


def _next_depth(workspace: Workspace, rounds: list[Record]) -> int | None:
    """Return the depth to grow to, or None when the target matches or may not grow."""
    growth, last = workspace.recipe.growth, rounds[-1]
    limit = min(growth.max_layers or workspace.depth, workspace.depth)
    spent = growth.max_rounds is not None and len(rounds) >= growth.max_rounds
    if last["comparison"]["matches"] or last["layers"] >= limit or spent:
        return None
    return min(last["layers"] + growth.by, limit)


def run_scratch(workspace: Workspace) -> list[Record]:
    """Train the same architecture from random weights, at the depth that the recipe names."""
    recipe = workspace.recipe
    if recipe.architecture is not None:
        config = make_config(recipe.architecture, workspace)
        return [run_round(workspace, 1, lambda: scratch(config, config.num_hidden_layers, recipe.seed), None, [])]
    layers = len(workspace.plan)
    return [
        run_round(
            workspace,
            1,
            lambda: scratch(workspace.reference, layers, recipe.seed),
            LayerPlan.random(layers),
            [],
        )
    ]


def run_stacking(workspace: Workspace) -> list[Record]:
    """Train a model of half the depth from scratch, stack it on itself, and train again (App. D)."""
    half = len(workspace.plan) // 2
    seed = workspace.recipe.seed
    plan = LayerPlan.random(half)
    first = run_round(workspace, 1, lambda: scratch(workspace.reference, half, seed), plan, [])
    return [first, _stack(workspace, first, half)]


def run_hybrid_stacking(workspace: Workspace) -> list[Record]:
    """As stacking, but the half that is trained first are the reference's first layers (App. D)."""
    half, seed = len(workspace.plan) // 2, workspace.recipe.seed
    plan = LayerPlan.first(half, workspace.depth)
    first = run_round(workspace, 1, lambda: inherit(workspace.reference, plan=plan, seed=seed), plan, [])
    return [first, _stack(workspace, first, half)]


def _stack(workspace: Workspace, first: Record, half: int) -> Record:
    plan, seed = LayerPlan.stacking(half), workspace.recipe.seed

    def build() -> PreTrainedModel:
        return inherit(workspace.reference, plan=plan, target=load_round(workspace, first), seed=seed)

    return run_round(workspace, 2, build, plan, [first])


def run_half_width(workspace: Workspace) -> list[Record]:
    """Train all layers of the reference with the first part of their heads, hidden units and MLP units (App. D)."""
    width = workspace.recipe.width or HALF
    return [run_round(workspace, 1, lambda: narrow(workspace.reference, width), workspace.plan, [])]


def run_distill(workspace: Workspace) -> list[Record]:
    """Train a random student on the data and the reference's logits (App. D)."""
    recipe, layers = workspace.recipe, len(workspace.plan)
    loss = DistillationLoss(workspace.reference, recipe.distill_alpha, workspace.shards.vocabulary)
    plan = LayerPlan.random(layers)
    return [run_round(workspace, 1, lambda: scratch(workspace.reference, layers, recipe.seed), plan, [], loss)]


def make_config(architecture: dict[str, Any], workspace: Workspace) -> PretrainedConfig:
    """Return the configuration that a recipe's `architecture` describes, with the shards' vocabulary.

    Raises:
        RecipeError: the model type or a field is unknown, or the values contradict each other.
    """
    from transformers import AutoConfig

    end = workspace.tokenizer.eos_token_id
    tokens = {"vocab_size": workspace.shards.vocabulary, "bos_token_id": end, "eos_token_id": end}
    try:
        return AutoConfig.for_model(**{**tokens, **architecture})
    except (ValueError, TypeError, KeyError) as error:
        raise RecipeError(f"architecture: {str(error).splitlines()[0]}") from error


METHODS: dict[str, Callable[[Workspace], list[Record]]] = {
    "inheritune": run_inheritune,
    "scratch": run_scratch,
    "stacking": run_stacking,
    "hybrid-stacking": run_hybrid_stacking,
    "half-width": run_half_width,
    "distill": run_distill,
}
