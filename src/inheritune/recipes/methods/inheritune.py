"""Inheritune: inherit the first layers, train, and grow while the target is worse than the reference (Algorithm 1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import override

from inheritune.recipes.methods.base import Method
from inheritune.recipes.rounds import load_round, run_round
from inheritune.recipes.schema import Recipe
from inheritune.recipes.workspace import Workspace
from inheritune.records.runs import RoundRecord
from inheritune.surgery import LayerPlan, inherit

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Inheritune(Method):
    """The paper's method."""

    name = "inheritune"
    summary = "Inherits layers of the reference and grows while the target does not match it (Algorithm 1)."
    takes = frozenset({"layers", "parts", "growth"})

    @override
    def depths(self, recipe: Recipe, depth: int) -> list[int]:
        growth, plan = recipe.growth, self.first_plan(recipe, depth)
        count, limit = len(plan), self._limit(recipe, depth)
        depths = [count, *range(count + growth.by, limit, growth.by), limit] if count < limit else [count]
        for layers in depths[1 : growth.max_rounds]:
            self._grown(recipe, depth, count, layers)
        return depths[: growth.max_rounds]

    @override
    def notes(self, recipe: Recipe, depth: int) -> list[str]:
        rounds = len(self.depths(recipe, depth))
        if recipe.growth.max_rounds is not None:
            return []
        if rounds > 1:
            return [f"at most {rounds} rounds, each trained like the first: to do fewer, set growth.max_rounds"]
        plan = self.first_plan(recipe, depth)
        if len(plan) >= min(recipe.growth.max_layers or depth, depth):
            return []
        return [f"no growth: the reference has no layers behind {_last_source(plan)}, the last that is inherited"]

    def _limit(self, recipe: Recipe, depth: int) -> int:
        """Return the depth of the deepest target: with the reference's last layer, unless the recipe stops before."""
        plan = self.first_plan(recipe, depth)
        behind = depth - 1 - _last_source(plan)
        return min(recipe.growth.max_layers or depth, len(plan) + behind)

    def _grown(self, recipe: Recipe, depth: int, layers: int, upto: int) -> LayerPlan:
        """Return the plan of a round that grows a target of `layers` layers to `upto`."""
        growth, start = recipe.growth, self.first_plan(recipe, depth)
        return LayerPlan.append(layers, upto, growth.mode, growth.zero_output, start=start, depth=depth)

    @override
    def run(self, workspace: Workspace) -> list[RoundRecord]:
        recipe, depth = workspace.recipe, workspace.depth
        plan = self.first_plan(recipe, depth)
        rounds = [run_round(workspace, [], plan, lambda: inherit(workspace.reference, plan=plan, seed=recipe.seed))]
        while (upto := self._next_depth(workspace, rounds)) is not None:
            last = rounds[-1]
            growth = self._grown(recipe, depth, last.layers, upto)

            def grow(growth: LayerPlan = growth, last: RoundRecord = last) -> PreTrainedModel:
                target = load_round(workspace, last) if "target" in growth.models else None
                return inherit(workspace.reference, plan=growth, target=target, seed=recipe.seed)

            rounds.append(run_round(workspace, rounds, growth, grow))
        return rounds

    def _next_depth(self, workspace: Workspace, rounds: list[RoundRecord]) -> int | None:
        """Return the depth to grow to, or None when the target matches or may not grow."""
        growth, last = workspace.recipe.growth, rounds[-1]
        limit = self._limit(workspace.recipe, workspace.depth)
        spent = growth.max_rounds is not None and len(rounds) >= growth.max_rounds
        if (last.comparison is not None and last.comparison.matches) or last.layers >= limit or spent:
            return None
        return min(last.layers + growth.by, limit)


def _last_source(plan: LayerPlan) -> int:
    """Return the reference's last layer that a plan takes."""
    return max(row.source for row in plan if row.source is not None)
