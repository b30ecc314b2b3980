"""One row of a `LayerPlan`: where one layer of the new model comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from inheritune.errors import PlanError, unknown_name
from inheritune.layers import ranges
from inheritune.surgery.plan.parts import PARTS, parse_parts
from inheritune.surgery.plan.selection import whole_number

Model: TypeAlias = Literal["reference", "target"]
MODELS: tuple[Model, ...] = ("reference", "target")
"""The models that a plan takes layers from."""


@dataclass(frozen=True)
class LayerRow:
    """Where one target layer comes from.

    Attributes:
        model: `"reference"` (the trained reference), `"target"` (the model that is being grown or stacked) or None
            (random initialisation).
        source: layer of that model, from 0; None for random initialisation.
        parts: what is copied, some of `PARTS`; the rest is random. Empty for random initialisation.
        zero_output: whether the projections that write to the residual stream start at zero, so that the block passes
            its input on unchanged until it is trained (growth that preserves the function).
        revived: query heads, 0-based, whose query and key weights start afresh at their random initialisation.
    """

    model: Model | None
    source: int | None
    parts: tuple[str, ...] = PARTS
    zero_output: bool = False
    revived: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "revived", tuple(sorted({whole_number(head) for head in self.revived})))
        if self.revived and (self.revived[0] < 0 or "attention" not in self.parts):
            raise PlanError(f"cannot revive heads {list(self.revived)} of a layer that takes {list(self.parts)}")
        if self.model is None:
            if self.source is not None or self.parts:
                raise PlanError(f"a random layer takes nothing: got source {self.source} and parts {list(self.parts)}")
            return
        if self.model not in MODELS:
            raise PlanError(unknown_name("model in a plan", str(self.model), MODELS))
        if self.source is None or self.source < 0:
            raise PlanError(f"source layer {self.source}: expected 0 or more")
        object.__setattr__(self, "parts", parse_parts(self.parts))

    @property
    def random_parts(self) -> tuple[str, ...]:
        """The parts that keep the random initialisation."""
        return tuple(part for part in PARTS if part not in self.parts)

    @property
    def changes(self) -> str:
        """What is done to the layer after its parts were copied, in words; empty where nothing is."""
        said = ["output zero"] if self.zero_output else []
        if self.revived:
            heads = ("head " if len(self.revived) == 1 else "heads ") + ranges(self.revived)
            said.append(f"queries, keys of {heads} random")
        return "; ".join(said)


RANDOM = LayerRow(None, None, ())
