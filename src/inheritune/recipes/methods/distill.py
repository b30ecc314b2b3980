"""The baseline distillation: a random student learns from the data and from the reference's logits (App. D)."""

from __future__ import annotations

from typing_extensions import override

from inheritune.recipes.methods.base import LAYERS
from inheritune.recipes.methods.scratch import Scratch
from inheritune.recipes.workspace import Workspace
from inheritune.training import DistillationLoss


class Distill(Scratch):
    """One round with the reference as the teacher."""

    name = "distill"
    summary = "Trains a random student on the data and on the reference's logits."
    takes = LAYERS | {"distill_alpha"}
    teaches = True

    @override
    def loss(self, workspace: Workspace) -> DistillationLoss:
        return DistillationLoss(workspace.reference, workspace.recipe.distill_alpha, workspace.shards.vocabulary)
