"""What Inheritune is compared with (App. D): scratch, distillation, half width, stacking and hybrid stacking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel
from typing_extensions import override

from inheritune.errors import PlanError
from inheritune.recipes.methods.base import Method
from inheritune.recipes.schema import Recipe
from inheritune.recipes.workspace import Workspace
from inheritune.records.runs import RoundRecord
from inheritune.surgery import LayerPlan
from inheritune.surgery.width import HALF, narrow, narrow_config, parse_width
from inheritune.training import DistillationLoss


class Scratch(Method):
    """Random weights, the reference's architecture at the recipe's depth, or an architecture without a reference."""

    name = "scratch"
    summary = "Trains the same architecture, or one that the recipe describes, from random weights."
    takes = frozenset({"architecture", "layers"})

    @override
    def first_plan(self, recipe: Recipe, depth: int) -> LayerPlan:
        return LayerPlan.random(depth if recipe.reference is None else len(super().first_plan(recipe, depth)))


class Distill(Scratch):
    """One round on a random student, with the reference as the teacher."""

    name = "distill"
    summary = "Trains a random student on the data and on the reference's logits."
    takes = frozenset({"layers", "distill_alpha"})
    teaches = True

    @override
    def loss(self, workspace: Workspace) -> DistillationLoss:
        return DistillationLoss(workspace.reference, workspace.recipe.distill_alpha, workspace.shards.vocabulary)


class HalfWidth(Method):
    """One round on a narrower model of the reference's depth."""

    name = "half-width"
    summary = "Keeps every layer with the first part of its heads, hidden units and MLP units."
    takes = frozenset({"width"})

    @override
    def read_setting(self, setting: str, value: Any) -> Any:
        try:
            return str(parse_width(HALF if value is None else value))
        except PlanError as error:
            raise ValueError("expected a fraction between 0 and 1, for example 1/2 or 0.75") from error

    @override
    def first_plan(self, recipe: Recipe, depth: int) -> LayerPlan:
        return LayerPlan.first(depth, depth)

    @override
    def scaled_config(self, recipe: Recipe, config: PretrainedConfig) -> PretrainedConfig:
        return narrow_config(config, recipe.width or HALF)

    @override
    def build(self, workspace: Workspace, plan: LayerPlan, before: Sequence[RoundRecord]) -> PreTrainedModel:
        return narrow(workspace.reference, workspace.recipe.width or HALF)


class Stacking(Method):
    """Two rounds: half of the layers from random weights, then all, made of the trained half twice."""

    name = "stacking"
    summary = "Trains half the depth from random weights, stacks it on itself, and trains again: two rounds."
    takes = frozenset({"layers"})

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
