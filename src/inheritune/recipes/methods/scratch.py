"""The baseline scratch: the same architecture from random weights (App. D), or one that the recipe describes."""

from __future__ import annotations

from typing_extensions import override

from inheritune.recipes.methods.base import LAYERS, Method
from inheritune.recipes.schema import Recipe
from inheritune.surgery import LayerPlan


class Scratch(Method):
    """Random weights, the reference's architecture at the recipe's depth, or an architecture without a reference."""

    name = "scratch"
    summary = "Trains the same architecture, or one that the recipe describes, from random weights."
    takes = LAYERS | {"architecture"}

    @override
    def first_plan(self, recipe: Recipe, depth: int) -> LayerPlan:
        return LayerPlan.random(depth if recipe.reference is None else len(super().first_plan(recipe, depth)))
