"""Token shards, what a recipe would take, what a run and its rounds wrote, and what is made of several runs."""

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from inheritune.records.base import Document, Environment, Record
from inheritune.records.evaluation import Comparison, LossSummary, Speed, SpeedRatio
from inheritune.records.surgery import PlanRow


class ShardFile(Record):
    """One file of token ids."""

    name: str
    tokens: int
    sha256: str


class Split(Record):
    """The training or the validation part of a corpus."""

    tokens: int
    shards: tuple[ShardFile, ...]
    documents: int = 0


class Splits(Record):
    """Both parts."""

    train: Split
    valid: Split


class SourceContent(Record):
    """What the files of a source were when they were read."""

    files: int
    bytes: int
    sha256: str  # of the file; of a folder, of a list of its files as `sha256sum` writes it


class PrepareSettings(Record):
    """What decides which tokens come out of a source."""

    source: str
    tokenizer: str
    validation: str | None = None
    valid_fraction: float
    separator: str
    field: str


class Manifest(Document):
    """`manifest.json`, the last file of a folder of token shards."""

    KIND = "shards"
    AGAIN = "run inheritune prepare again, into a new folder"

    dtype: Annotated[str, Field(pattern="^<u[24]$")]
    vocabulary: int  # one more than the largest token id of the tokenizer
    splits: Splits
    settings: PrepareSettings
    sources: dict[str, SourceContent] = {}
    """The content of `source` and `validation`; not known of data sets of the hub and in shards of version 0.1."""
    tokenizer_sha256: str | None = None  # `tokenizer_digest` of the tokenizer; None in shards of version 0.1


class Sample(Record):
    """What a model writes."""

    prompt: str
    text: str


class TrainedOn(Document):
    """`training.json`, beside a model's weights: what it was trained on."""

    KIND = "training"
    AGAIN = "run inheritune run again"

    tokens: int
    recipe: str | None = None
    method: str | None = None


class RunData(Record):
    """The tokens of a run."""

    source: str
    tokenizer: str | None = None
    vocabulary: int
    train_tokens: int
    valid_tokens: int
    digest: str
    documents: str | None = None
    """The file with the documents of each validation window, in the run's folder; None in runs of version 0.2."""


class CheckpointRecord(Document):
    """`complete.json`, the last file of a checkpoint."""

    KIND = "checkpoint"
    AGAIN = "run the recipe again"

    step: int
    files: dict[str, str]  # the digest of each other file


class ReferenceRecord(Document):
    """The model that a run is measured against; `reference.json` beside its losses, then a part of `record.json`."""

    KIND = "reference"
    AGAIN = "delete it and run the recipe again"

    model: str
    name: str | None = None
    layers: int
    parameters: int
    tokens: int | None = None
    evaluation: LossSummary
    speed: Speed | None = None
    sample: Sample | None = None
    analysis: str | None = None
    identity: str | None = None


class CurvePoint(Document):
    """`point.json`: a model that the round's constant learning rate leads to when it falls early.

    Attributes:
        step: optimiser steps of the model.
        tokens: that the model itself was trained on in this round.
        tokens_spent: on it and on all points before it, what they share counted once.
        seconds: of the model's own training.
        evaluation: on the fixed windows.
        comparison: with the reference.
    """

    KIND = "point"
    AGAIN = "delete its folder and run the recipe again"

    step: int
    tokens: int
    tokens_spent: int
    seconds: float
    evaluation: LossSummary
    comparison: Comparison | None = None


class RoundRecord(Document):
    """`round.json`, the last file of a round; its paths are relative to the run's folder."""

    KIND = "round"
    AGAIN = "delete its folder and run the recipe again"

    name: str
    layers: int
    parameters: int
    plan: tuple[PlanRow, ...] | None = None
    steps: int
    tokens: int
    seconds: float
    start_evaluation: LossSummary | None = None
    evaluation: LossSummary
    comparison: Comparison | None = None
    metrics: str | None = None
    collapse: str | None = None
    losses: str | None = None
    model: str
    curve: tuple[CurvePoint, ...] = ()  # loss against tokens where there are cool-downs; the last is the round's model

    @property
    def ends(self) -> "list[RoundRecord]":
        """The round as if it had ended at each point of its curve; the last is the round itself."""
        earlier = [
            self.model_copy(
                update={"name": f"{self.name}, {point.step} steps", "tokens": point.tokens, "seconds": point.seconds}
                | {"evaluation": point.evaluation, "comparison": point.comparison}
            )
            for point in self.curve[:-1]
        ]
        return [*earlier, self]


class ResultRecord(Record):
    """The model that a run ends with."""

    model: str | None = None
    losses: str | None = None
    layers: int
    parameters: int
    dtype: str | None = None
    """Of the weights as they are saved; `evaluation` is theirs. None in files of version 0.1, which saved float32."""
    tokens: int
    seconds: float | None = None
    evaluation: LossSummary
    comparison: Comparison | None = None
    matched: bool | None = None
    speed: Speed | None = None
    speed_ratio: SpeedRatio | None = None
    sample: Sample | None = None
    analysis: str | None = None


class RunRecord(Document):
    """`record.json` of a finished run."""

    KIND = "run"
    AGAIN = "delete it and run the recipe again"

    name: str
    method: str
    recipe: dict[str, Any]  # the settings of the recipe, which is checked where it is read as one
    seed: int
    environment: Environment = Environment()
    created: str = ""
    data: RunData | None = None
    reference: ReferenceRecord | None = None
    rounds: tuple[RoundRecord, ...]
    result: ResultRecord
    shipped: str | None = None  # where the record is from, if it was not made in its folder

    @property
    def taught(self) -> bool:
        """Whether something of the reference was minimised, so that the training loss is of another kind."""
        said = self.recipe.get("objective")
        return self.method == "distill" if said is None else bool(said["kl"] or said["hidden"])

    @property
    def trained(self) -> str:
        """The method, with the objective where the recipe names one: `inheritune, 0.6 cross-entropy + 0.4 KL`."""
        said = self.recipe.get("objective") or {}
        names = {"cross_entropy": "cross-entropy", "kl": "KL", "hidden": "hidden states"}
        parts = [f"{said[key]:g} {name}".removeprefix("1 ") for key, name in names.items() if said.get(key)]
        return f"{self.method}, {' + '.join(parts)}" if parts else self.method


class FrontierPoint(Record):
    """The model of one depth."""

    run: str  # the folder of its run, in that of the frontier
    layers: Annotated[int, Field(ge=1)]
    kept: str = ""
    """Those of the reference's layers that it began with, as ranges with both ends included; empty for random ones."""
    parameters: Annotated[int, Field(ge=1)]
    weight_bytes: int  # as they are saved
    tokens: int  # spent on it, all stages and cool-downs included
    untrained: LossSummary | None = None  # on the same windows, before any training
    evaluation: LossSummary
    comparison: Comparison
    tokens_to_match: int | None = None
    """Spent up to the first point that matched, where the curve has several; None where none did."""
    speed: Speed | None = None
    speed_ratio: SpeedRatio | None = None


class FrontierRecord(Document):
    """`frontier.json`: what each depth costs, the deepest first."""

    KIND = "frontier"
    AGAIN = "delete it and run inheritune frontier again"

    name: str
    trained: str  # the method and the objective, in words
    recipe: dict[str, Any]
    environment: Environment = Environment()
    created: str = ""
    reference: ReferenceRecord
    reference_bytes: int
    prices: str | None = None  # the file that says what layers cost; None where layers were not chosen
    points: Annotated[tuple[FrontierPoint, ...], Field(min_length=1)]
    shipped: str | None = None  # where the record is from, if it was not made in its folder, which then has no runs

    @model_validator(mode="after")
    def _is_of_one_reference(self) -> Self:
        most = self.reference.layers
        if deeper := [point.layers for point in self.points if point.layers > most]:
            raise ValueError(f"a point has {deeper[0]} layers: expected at most the reference's {most}")
        return self

    @property
    def smallest(self) -> FrontierPoint | None:
        """The smallest model that matches; None where none does."""
        matching = [each for each in self.points if each.comparison.matches]
        return min(matching, key=lambda each: each.layers, default=None)


class PlannedRound(Record):
    """What one round would take."""

    layers: int
    parameters: int
    tokens: int
    seconds: float
    reference_layers: str = ""  # those that the target was made of, as ranges with both ends included


class MemoryEstimate(Record):
    """The memory of a training, in bytes."""

    training: int  # weights, gradients and the optimiser's moments of the deepest target
    reference: int
    logits: int
    activations: int
    libraries: int = 0  # Python and what it has imported; not on an accelerator


class PlanRecord(Document):
    """What a recipe would take."""

    KIND = "plan"

    name: str
    method: str
    notes: tuple[str, ...] = ()  # what a user should know before running it
    rounds: tuple[PlannedRound, ...]
    tokens: int
    seconds: float
    memory: MemoryEstimate | None = None
    memory_bytes: int
    memory_available_bytes: int


class QuickstartRecord(Document):
    """`record.json` of the quickstart."""

    KIND = "quickstart"

    created: str
    environment: Environment = Environment()
    runs: tuple[str, ...]
    report: str
    verdict: str
    result: ResultRecord
    inheritune: ResultRecord | None = None
    scratch: ResultRecord


class ReproducedRun(ResultRecord):
    """A run beside the published numbers."""

    reference: ReferenceRecord | None = None


class ReproductionRecord(Document):
    """`record.json` of a reproduced table."""

    KIND = "reproduce"

    experiment: str
    scale: str
    created: str
    environment: Environment = Environment()
    published: dict[str, Any]  # the table as the paper prints it; each has columns of its own
    ours: dict[str, ReproducedRun]
