"""The baseline half width: all layers with the first part of their heads, hidden units and MLP units (App. D)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from inheritune.errors import PlanError
from inheritune.recipes.methods.base import Method
from inheritune.recipes.schema import Recipe
from inheritune.recipes.workspace import Workspace
from inheritune.records.runs import RoundRecord
from inheritune.surgery import LayerPlan
from inheritune.surgery.width import HALF, narrow, narrow_config, parse_width

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


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
