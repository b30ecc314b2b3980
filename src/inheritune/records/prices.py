"""`prices.json`: what each layer of a model costs, and what the cut to each depth costs before any training."""

from typing import Self

from pydantic import Field, model_validator

from inheritune.records.analysis import AnalysedText, Index
from inheritune.records.base import Document, Environment, Record

WINDOWS, LENGTH = 32, 128
"""What layers are chosen on unless told otherwise: windows, and tokens of each, or fewer where the context is less."""


class Cost(Record):
    """The loss of a cut, and how far it is above the whole model's: the paired mean with its interval; nats a token."""

    loss: float
    difference: float
    ci_low: float
    ci_high: float


class LayerPrice(Record):
    """What the model loses without one layer; `cost` is null where it cannot do without it, and `refused` says why."""

    index: Index
    cost: Cost | None = None
    refused: str | None = None


class OtherCut(Record):
    """The cut that another rule makes to a depth; its loss is null where no such model can be made."""

    cut: tuple[int, ...]
    loss: float | None


class DepthPrice(Record):
    """The cheapest set of layers found for one depth, by the search or by another rule."""

    depth: int = Field(ge=1)
    cut: tuple[int, ...]  # the layers that are left out; in the order of their deletion, where the search found them
    cost: Cost
    others: dict[str, OtherCut] = {}  # by the name of the rule


class Agreement(Record):
    """Whether a measure orders the layers as their prices do (Spearman), over the layers that have both."""

    measure: str
    layers: int
    correlation: float | None = None
    p_value: float | None = None


class PricesRecord(Document):
    """`prices.json`."""

    KIND = "prices"
    AGAIN = "run inheritune analyze --ablate again"

    model: str | None = None
    identity: str | None = None
    depth: int = Field(ge=2)
    loss: float  # of the whole model, nats a token
    uniform: float  # the loss of guessing among all tokens evenly: the logarithm of the vocabulary
    windows: int = Field(ge=2)
    length: int = Field(ge=1)
    digest: str  # of the windows, so that the same work is known
    least: int = Field(ge=1)  # the depth at the end of the path
    beam: int = Field(ge=1)
    confidence: float
    layers: tuple[LayerPrice, ...]
    cuts: tuple[DepthPrice, ...]
    path: tuple[tuple[int, float], ...]
    """The layers in the order of their deletion, each with the loss once it is gone too."""
    agreements: tuple[Agreement, ...] = ()
    data: AnalysedText | None = None
    environment: Environment = Environment()
    created: str | None = None

    @model_validator(mode="after")
    def _fits_the_depth(self) -> Self:
        cuts = {f"cuts[{i}].cut": (each.cut, self.depth - each.depth) for i, each in enumerate(self.cuts)}
        for i, each in enumerate(self.cuts):
            cuts |= {f"cuts[{i}].others.{rule}": (other.cut, len(each.cut)) for rule, other in each.others.items()}
        cuts["path"] = tuple(layer for layer, _ in self.path), len(self.path)
        for name, (cut, count) in cuts.items():
            if len(cut) != count or len({*cut} & {*range(self.depth)}) != count or count >= self.depth:
                raise ValueError(f"{name} is {list(cut)}, expected {count} different layers of {self.depth}")
        if [layer.index for layer in self.layers] != [*range(self.depth)]:
            raise ValueError(f"layers has not an entry for each of the {self.depth} layers")
        return self
