"""What a method does with a recipe: the depths it trains, the configuration it scales, and its rounds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from inheritune.recipes.registry import MethodSettings
from inheritune.recipes.schema import Recipe
from inheritune.recipes.workspace import Workspace
from inheritune.records.runs import RoundRecord
from inheritune.surgery import LayerPlan

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class Method(MethodSettings, ABC):
    """A way to get a trained target, as a short sequence of rounds over layer plans.

    Attributes:
        teaches: whether the reference runs beside the target in every step of the training.
    """

    teaches: ClassVar[bool] = False

    def first_plan(self, recipe: Recipe, depth: int) -> LayerPlan:
        """Return the layers that a recipe names of a reference of `depth` layers; its first half where it names none.

        Raises:
            PlanError: the layers are not there.
        """
        layers = recipe.layers if recipe.layers is not None else max(depth // 2, 1)
        return LayerPlan.from_layers(layers, depth, recipe.parts)

    def depths(self, recipe: Recipe, depth: int) -> list[int]:
        """Return the layers of the target in each round there may be, from a reference of `depth` layers.

        Raises:
            PlanError: the layers are not there, or the method cannot train so many.
        """
        return [len(self.first_plan(recipe, depth))]

    def scaled_config(self, recipe: Recipe, config: PretrainedConfig) -> PretrainedConfig:
        """Return the reference's configuration as the targets have it, their depth apart.

        Raises:
            PlanError: the recipe does not fit the reference.
        """
        return config

    def notes(self, recipe: Recipe, depth: int) -> list[str]:
        """Return what a user should know before running a recipe on a reference of `depth` layers, a line each."""
        return []

    @abstractmethod
    def run(self, workspace: Workspace) -> list[RoundRecord]:
        """Do all rounds that are not done yet, each by `run_round`, and return their records."""
