"""Inheritune: inherit the first layers, train, and grow while the target is worse than the reference (Algorithm 1)."""

from __future__ import annotations

from itertools import pairwise

from typing_extensions import override

from inheritune.recipes.methods.base import Method
from inheritune.recipes.schema import Recipe
from inheritune.records.runs import RoundRecord
from inheritune.surgery import LayerPlan


class Inheritune(Method):
    """The paper's method."""

    name = "inheritune"
    summary = "Inherits layers of the reference and grows while the target does not match it (Algorithm 1)."
    takes = frozenset({"layers", "parts", "moved", "growth"})

    @override
    def plans(self, recipe: Recipe, depth: int) -> list[LayerPlan]:
        start, growth = self.first_plan(recipe, depth), recipe.growth
        behind = depth - 1 - _last_source(start)  # layers of the reference that a target can still grow by
        limit = min(growth.max_layers or depth, len(start) + behind)
        depths = [*range(len(start), limit, growth.by), max(limit, len(start))][: growth.max_rounds]
        return [start] + [
            LayerPlan.append(layers, upto, growth.mode, growth.zero_output, start=start, depth=depth)
            for layers, upto in pairwise(depths)
        ]

    @override
    def is_enough(self, last: RoundRecord) -> bool:
        return last.comparison is not None and last.comparison.matches

    @override
    def notes(self, recipe: Recipe, depth: int) -> list[str]:
        if recipe.growth.max_rounds is not None:
            return []
        start, *grown = self.plans(recipe, depth)
        if grown:
            rounds = len(grown) + 1
            return [f"at most {rounds} rounds, each trained like the first: to do fewer, set growth.max_rounds"]
        if len(start) >= min(recipe.growth.max_layers or depth, depth):
            return []
        return [f"no growth: the reference has no layers behind {_last_source(start)}, the last that is inherited"]


def _last_source(plan: LayerPlan) -> int:
    """Return the reference's last layer that a plan takes."""
    return max(row.source for row in plan if row.source is not None)
