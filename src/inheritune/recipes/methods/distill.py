"""The baseline distillation: a random student learns from the data and from the reference's logits (App. D)."""

from __future__ import annotations

from typing_extensions import override

from inheritune.recipes.methods.base import LAYERS
from inheritune.recipes.methods.scratch import Scratch
from inheritune.recipes.schema import Recipe
from inheritune.training import ObjectiveSettings


class Distill(Scratch):
    """One round with the reference as the teacher."""

    name = "distill"
    summary = "Trains a random student on the data and on the reference's logits."
    takes = LAYERS | {"distill_alpha"}

    @override
    def objective(self, recipe: Recipe) -> ObjectiveSettings:
        alpha = recipe.distill_alpha
        return recipe.objective or ObjectiveSettings(cross_entropy=alpha, kl=1 - alpha)
