"""Where the layers of a new model come from."""

from typing import Literal

from inheritune.records.base import Document, Environment, Record


class PlanRow(Record):
    """Where one layer of a new model comes from; see `LayerRow`."""

    target: int
    model: Literal["reference", "target"] | None
    source: int | None
    parts: tuple[str, ...]
    zero_output: bool = False
    revived: tuple[int, ...] = ()
    moved: Literal["keep", "as-is"] = "as-is"  # what was done before the field was


class ParameterCounts(Record):
    """Parameters of a model before and after."""

    before: int
    after: int


class SurgeryRecord(Document):
    """`inherit.json`, beside the weights of a new model."""

    KIND = "inherit"

    source: str
    identity: str | None = None  # of the source; see `model_identity`
    target: str | None = None
    layers: int
    plan: tuple[PlanRow, ...]
    width: str | None = None
    repair: str | None = None
    seed: int
    parameters: ParameterCounts
    created: str = ""
    environment: Environment = Environment()
