"""The baselines stacking and hybrid stacking: train half the depth, stack it on itself, train again (App. D)."""

from __future__ import annotations

from typing_extensions import override

from inheritune.errors import PlanError
from inheritune.recipes.methods.base import LAYERS, Method
from inheritune.recipes.schema import Recipe
from inheritune.surgery import LayerPlan


class Stacking(Method):
    """Two rounds: half of the layers from random weights, then all, made of the trained half twice."""

    name = "stacking"
    summary = "Trains half the depth from random weights, stacks it on itself, and trains again: two rounds."
    takes = LAYERS

    @override
    def plans(self, recipe: Recipe, depth: int) -> list[LayerPlan]:
        count = len(self.first_plan(recipe, depth))
        if count % 2:
            raise PlanError(f"{self.name} doubles a model, so its {count} layers must be even; try {count + 1}")
        return [self.half(count // 2, depth), LayerPlan.stacking(count // 2)]

    def half(self, layers: int, depth: int) -> LayerPlan:
        """Return the half that is trained first, of a reference of `depth` layers."""
        return LayerPlan.random(layers)


class HybridStacking(Stacking):
    """As stacking, but the half that is trained first are the reference's first layers."""

    name = "hybrid-stacking"
    summary = "As stacking, but the first half starts as the reference's first layers."

    @override
    def half(self, layers: int, depth: int) -> LayerPlan:
        return LayerPlan.first(layers, depth)
