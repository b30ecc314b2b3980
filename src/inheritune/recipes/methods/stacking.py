"""The baselines stacking and hybrid stacking: train half the depth, stack it on itself, train again (App. D)."""

from __future__ import annotations

from typing_extensions import override

from inheritune.errors import PlanError
from inheritune.recipes.methods.base import Method
from inheritune.recipes.rounds import load_round, run_round
from inheritune.recipes.schema import Recipe
from inheritune.recipes.workspace import Workspace
from inheritune.records.runs import RoundRecord
from inheritune.surgery import LayerPlan, inherit, scratch


class Stacking(Method):
    """Two rounds: half of the layers from random weights, then all, made of the trained half twice."""

    name = "stacking"
    summary = "Trains half the depth from random weights, stacks it on itself, and trains again: two rounds."
    takes = frozenset({"layers"})

    @override
    def depths(self, recipe: Recipe, depth: int) -> list[int]:
        count = len(self.first_plan(recipe, depth))
        if count % 2:
            raise PlanError(f"{self.name} doubles a model, so its {count} layers must be even; try {count + 1}")
        return [count // 2, count]

    @override
    def run(self, workspace: Workspace) -> list[RoundRecord]:
        half, _ = self.depths(workspace.recipe, workspace.depth)
        first = self.first_round(workspace, half)
        plan, seed = LayerPlan.stacking(half), workspace.recipe.seed
        second = run_round(
            workspace,
            [first],
            plan,
            lambda: inherit(workspace.reference, plan=plan, target=load_round(workspace, first), seed=seed),
        )
        return [first, second]

    def first_round(self, workspace: Workspace, half: int) -> RoundRecord:
        """Train the half that is stacked."""
        plan, seed = LayerPlan.random(half), workspace.recipe.seed
        return run_round(workspace, [], plan, lambda: scratch(workspace.reference, half, seed))


class HybridStacking(Stacking):
    """As stacking, but the half that is trained first are the reference's first layers."""

    name = "hybrid-stacking"
    summary = "As stacking, but the first half starts as the reference's first layers."

    @override
    def first_round(self, workspace: Workspace, half: int) -> RoundRecord:
        plan, seed = LayerPlan.first(half, workspace.depth), workspace.recipe.seed
        return run_round(workspace, [], plan, lambda: inherit(workspace.reference, plan=plan, seed=seed))
