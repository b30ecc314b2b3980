"""The baseline scratch: the same architecture from random weights (App. D), or one that the recipe describes."""

from __future__ import annotations

from typing_extensions import override

from inheritune.recipes.methods.base import Method
from inheritune.recipes.rounds import run_round
from inheritune.recipes.schema import Recipe
from inheritune.recipes.workspace import Workspace
from inheritune.records.runs import RoundRecord
from inheritune.surgery import LayerPlan, scratch


class Scratch(Method):
    """Random weights, the reference's architecture at the recipe's depth, or an architecture without a reference."""

    name = "scratch"
    summary = "Trains the same architecture, or one that the recipe describes, from random weights."
    takes = frozenset({"architecture", "layers"})

    @override
    def depths(self, recipe: Recipe, depth: int) -> list[int]:
        return [depth] if recipe.architecture is not None else super().depths(recipe, depth)

    @override
    def run(self, workspace: Workspace) -> list[RoundRecord]:
        recipe, depth = workspace.recipe, workspace.depth
        (layers,) = self.depths(recipe, depth)
        plan = LayerPlan.random(layers) if recipe.architecture is None else None
        return [run_round(workspace, [], plan, lambda: scratch(workspace.config, layers, recipe.seed))]
