"""Inheritune: inherit the first layers, train, and grow while the target is worse than the reference (Algorithm 1)."""

from __future__ import annotations

from itertools import pairwise

from typing_extensions import override

from inheritune.errors import PlanError
from inheritune.layers import plural
from inheritune.recipes.methods.base import LAYERS, Method
from inheritune.recipes.schema import Recipe, RecommendedLayers
from inheritune.records.runs import RoundRecord
from inheritune.spectra.advice import depth_of_budget
from inheritune.surgery import LayerPlan
from inheritune.surgery.revive import heads_to_revive


class Inheritune(Method):
    """The paper's method."""

    name = "inheritune"
    summary = "Inherits layers of the reference and grows while the target does not match it (Algorithm 1)."
    takes = LAYERS | {"parts", "moved", "repair", "revive", "growth"}
    chooses = True

    @override
    def first_plan(self, recipe: Recipe, depth: int) -> LayerPlan:
        plan = super().first_plan(recipe, depth)
        chosen = recipe.layers is not None or (recipe.keep is None and recipe.drop is None)
        if recipe.revive is None or not chosen:  # layers to be measured may be others than those of this plan
            return plan
        return plan.revive(heads_to_revive(recipe.revive, depth))

    @override
    def plans(self, recipe: Recipe, depth: int) -> list[LayerPlan]:
        start, growth = self.first_plan(recipe, depth), recipe.growth
        if growth.order == "path":
            return _along_path(start, recipe, depth)
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
        kept = depth_of_budget(recipe.keep, recipe.drop, depth) if recipe.layers is None else None
        if kept is None:
            return self._growth_notes(recipe, depth)
        which = f"which {plural(kept, 'layer')} to keep is measured when the run begins"
        return [f"{which}: the first stand for them here", *self._growth_notes(recipe, depth)]

    def _growth_notes(self, recipe: Recipe, depth: int) -> list[str]:
        if recipe.growth.max_rounds is not None:
            return []
        start, *grown = self.plans(recipe, depth)
        if grown:
            rounds = len(grown) + 1
            return [f"at most {rounds} rounds, each trained like the first: to do fewer, set growth.max_rounds"]
        if len(start) >= min(recipe.growth.max_layers or depth, depth):
            return []
        last = f"no growth: the reference has no layers behind {_last_source(start)}, the last that is inherited"
        measured = isinstance(recipe.layers, RecommendedLayers) and recipe.layers.measured
        return [f"{last}; growth.order=path puts back those between" if measured else last]


def _along_path(start: LayerPlan, recipe: Recipe, depth: int) -> list[LayerPlan]:
    """Return the plan `start` and those by which the layers that a measured cut left out come back, the dearest first.

    Raises:
        PlanError: nothing says what the layers cost.
    """
    layers, growth = recipe.layers, recipe.growth
    order = layers.order if isinstance(layers, RecommendedLayers) else ()
    if layers is None and (recipe.keep is not None or recipe.drop is not None):
        order = tuple(range(len(start), depth))  # as long as they are not measured
    if not order and len(start) < depth:
        raise PlanError(
            "growth.order path puts layers back by what they cost, which is not known: expected keep or drop, or "
            "layers of an analysis with --ablate"
        )
    order = order[: max((growth.max_layers or depth) - len(start), 0)]
    plans, held = [start], start
    for first in range(0, len(order), growth.by)[: None if growth.max_rounds is None else growth.max_rounds - 1]:
        new = order[first : first + growth.by]
        plans.append(LayerPlan.insert(held, new, growth.mode, growth.zero_output))
        held = LayerPlan.insert(held, new, "restart")
    return plans


def _last_source(plan: LayerPlan) -> int:
    """Return the reference's last layer that a plan takes."""
    return max(row.source for row in plan if row.source is not None)
