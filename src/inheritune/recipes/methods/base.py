"""What a method does with a recipe: the plan of each round, the model that a round trains, and what it minimises."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from functools import partial
from typing import ClassVar

from transformers import PretrainedConfig, PreTrainedModel

from inheritune.recipes.rounds import run_round
from inheritune.recipes.schema import MethodSettings, Recipe
from inheritune.recipes.workspace import Workspace
from inheritune.records.runs import RoundRecord
from inheritune.spectra.advice import depth_of_budget
from inheritune.surgery import LayerPlan, inherit, scratch
from inheritune.surgery.plan.selection import Layers
from inheritune.training import Objective, ObjectiveSettings
from inheritune.training.losses import Loss
from inheritune.training.settings import OBJECTIVES

LAYERS = frozenset({"keep", "drop", "layers"})
"""The settings that say how many layers a target has."""


class Method(MethodSettings):
    """A way to get a trained target, as a short sequence of rounds over layer plans.

    Attributes:
        chooses: whether it matters which of the reference's layers are kept, and not only how many.
    """

    chooses: ClassVar[bool] = False

    def first_plan(self, recipe: Recipe, depth: int) -> LayerPlan:
        """Return the layers that a recipe names of a reference of `depth` layers; its first half where it names none.

        The first layers stand for those that a budget keeps, as long as they are not measured.

        Raises:
            PlanError: the layers are not there.
        """
        layers: Layers | None = recipe.layers
        if layers is None:
            layers = depth_of_budget(recipe.keep, recipe.drop, depth) or max(depth // 2, 1)
        return LayerPlan.from_layers(layers, depth, recipe.parts).with_moved(recipe.moved)

    def plans(self, recipe: Recipe, depth: int) -> list[LayerPlan]:
        """Return the target of each round there may be, from a reference of `depth` layers.

        Raises:
            PlanError: the layers are not there, or the method cannot train so many.
        """
        return [self.first_plan(recipe, depth)]

    def is_enough(self, last: RoundRecord) -> bool:
        """Return whether no round has to follow the round `last`, although there is another plan."""
        return False

    def scaled_config(self, recipe: Recipe, config: PretrainedConfig) -> PretrainedConfig:
        """Return the reference's configuration as the targets have it, their depth apart.

        Raises:
            PlanError: the recipe does not fit the reference.
        """
        return config

    def notes(self, recipe: Recipe, depth: int) -> list[str]:
        """Return what a user should know before running a recipe on a reference of `depth` layers, a line each."""
        return []

    def build(self, workspace: Workspace, plan: LayerPlan, before: Sequence[RoundRecord]) -> PreTrainedModel:
        """Return the model that a round trains, behind the rounds `before`, with the same weights each time.

        It is random if the plan takes nothing.
        """
        recipe = workspace.recipe
        if not plan.models:
            source = workspace.config if recipe.reference is None else workspace.reference
            return scratch(source, len(plan), recipe.seed)
        target = workspace.load_round(before[-1]) if "target" in plan.models else None
        repair = workspace.repair_windows if recipe.repair and target is None else None
        return inherit(workspace.reference, plan=plan, target=target, repair=repair, seed=recipe.seed)

    def objective(self, recipe: Recipe) -> ObjectiveSettings:
        """Return what is minimised: what the recipe names, else the method's own, the cross-entropy."""
        return recipe.objective or OBJECTIVES["cross-entropy"]

    def loss(self, workspace: Workspace) -> Loss:
        """Return what is minimised, with the teacher where there is one."""
        objective = self.objective(workspace.recipe)
        return Objective(objective, workspace.teacher if objective.needs_teacher else None, workspace.shards.vocabulary)

    def run(self, workspace: Workspace) -> list[RoundRecord]:
        """Do all rounds that are not done yet, and return the records of all."""
        rounds: list[RoundRecord] = []
        for plan in self.plans(workspace.recipe, workspace.depth):
            if rounds and self.is_enough(rounds[-1]):
                break
            build = partial(self.build, workspace, plan, rounds)
            rounds.append(run_round(workspace, rounds, plan, build, self.loss(workspace)))
            gc.collect()  # the trained model, which refers to itself
        return rounds
