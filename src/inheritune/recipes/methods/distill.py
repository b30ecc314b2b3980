"""The baseline distillation: a random student learns from the data and from the reference's logits (App. D)."""

from __future__ import annotations

from typing_extensions import override

from inheritune.recipes.methods.base import Method
from inheritune.recipes.rounds import run_round
from inheritune.recipes.workspace import Workspace
from inheritune.records.runs import RoundRecord
from inheritune.surgery import LayerPlan, scratch
from inheritune.training import DistillationLoss


class Distill(Method):
    """One round with the reference as the teacher."""

    name = "distill"
    summary = "Trains a random student on the data and on the reference's logits."
    takes = frozenset({"layers", "distill_alpha"})
    teaches = True

    @override
    def run(self, workspace: Workspace) -> list[RoundRecord]:
        recipe = workspace.recipe
        (layers,) = self.depths(recipe, workspace.depth)
        loss = DistillationLoss(workspace.reference, recipe.distill_alpha, workspace.shards.vocabulary)
        plan = LayerPlan.random(layers)
        return [run_round(workspace, [], plan, lambda: scratch(workspace.reference, layers, recipe.seed), loss)]
