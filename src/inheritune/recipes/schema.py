"""The recipe: everything that decides a run's result, and nothing else; and the methods that it may name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from inheritune.errors import InherituneError, RecipeError, unknown_name
from inheritune.records.analysis import Recommendation
from inheritune.records.base import first_problem
from inheritune.records.prices import WINDOWS
from inheritune.spectra.advice import recommend
from inheritune.surgery.plan.row import Moved
from inheritune.surgery.plan.selection import recommended_layers
from inheritune.training.settings import ObjectiveSettings, Settings, TrainingSettings

Share = Annotated[float, Field(gt=0, lt=1)]
FEWEST_STEPS, SMALLEST_BATCH, LARGEST_BATCH = 50, 4, 16
"""What `RecipeTraining.resolved` keeps to."""


class MethodSettings:
    """What a recipe may say to a method; `methods.base.Method` adds what the method does with it.

    Attributes:
        name: what a recipe calls it.
        summary: what it does, one sentence, for the reference page.
        takes: the settings of its own; a recipe with one that only other methods take is refused.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    takes: ClassVar[frozenset[str]]

    def read_setting(self, setting: str, value: Any) -> Any:
        """Return the value that a setting of its own stands for, its default where `value` is None.

        Raises:
            ValueError: the value is wrong; the text says what is expected.
        """
        return value


METHODS: dict[str, MethodSettings] = {}
"""By name, in the order in which they are listed to a user; `methods/__init__.py` fills it."""


class DataSettings(Settings):
    """The text and how it becomes tokens; see `inheritune.data.prepare`.

    Attributes:
        source: `stdlib`, a file, a folder, or `hf:NAME[:CONFIG]`.
        tokenizer: a tokenizer or model, or `train:SIZE`; None takes the reference's own.
        validation: a second source, for validation alone.
        valid_fraction: share of the documents for validation.
        separator: what stands between two documents of a text file.
        field: the field of JSON lines and tables that holds the text.
        folder: where the shards are kept, to be shared by runs; None keeps them in the run's own folder.
    """

    source: str = "stdlib"
    tokenizer: str | None = None
    validation: str | None = None
    valid_fraction: float = Field(default=0.04, gt=0, lt=1)
    separator: str = "\n\n"
    field: str = "text"
    folder: str | None = None


class RecipeTraining(TrainingSettings):
    """How a round is trained; what is null is taken from the model and the text (`resolved`).

    Attributes:
        steps: optimiser steps of a round (the paper's T); None takes as many as one pass over the training text needs,
            and at least 50.
        batch: sequences of one step, over all devices; None takes 16, or fewer (not below 4) so that a pass has
            50 steps.
        length: input tokens of a sequence; None takes the model's context, 512 at most, halved (not below 64) while
            there are fewer than 8 validation windows of that length.
    """

    steps: int | None = Field(default=None, gt=0)  # type: ignore[assignment]  # None until it is resolved
    batch: int | None = Field(default=16, gt=0)  # type: ignore[assignment]
    length: int | None = Field(default=128, gt=0)  # type: ignore[assignment]

    def resolved(self, context: int | None, train_tokens: int, valid_tokens: int) -> TrainingSettings:
        """Return the settings with every null replaced by what the model's context and the text's size say.

        Raises:
            RecipeError: they contradict what was null.
        """
        from inheritune.data.windows import fitting_length

        length = self.length or fitting_length(context, valid_tokens)
        windows = max((train_tokens - 1) // length, 1)
        batch = self.batch or min(max(windows // FEWEST_STEPS, SMALLEST_BATCH), LARGEST_BATCH)
        steps = self.steps or max(-(-windows // batch), FEWEST_STEPS)
        try:
            return TrainingSettings(**{**self.model_dump(), "steps": steps, "batch": batch, "length": length})
        except ValidationError as error:
            raise RecipeError(f"training: {first_problem(error)}") from error


class GrowthSettings(Settings):
    """How the target grows while it does not match the reference (paper, Algorithm 1, steps 3 to 5).

    Attributes:
        by: layers added at a time.
        mode: `continue` keeps the trained layers and appends the reference's next ones (Algorithm 1's words); `restart`
            takes all of them afresh from the reference (the published GPT-2 Medium runs).
        order: `next` appends the layers behind the last one that the recipe's `layers` name (the paper's); `path` puts
            back those that a measured cut left out, the dearest first, each at its place between the others.
        zero_output: whether new layers start without output (`continue` alone), so that the loss does not jump when the
            target grows; they learn from the first step on.
        max_layers: the deepest target; None allows the reference's depth.
        max_rounds: the greatest number of rounds; None sets no limit.
    """

    by: int = Field(default=2, gt=0)
    mode: Literal["continue", "restart"] = "continue"
    order: Literal["next", "path"] = "next"
    zero_output: bool = False
    max_layers: int | None = Field(default=None, gt=0)
    max_rounds: int | None = Field(default=None, gt=0)


class AblationSettings(Settings):
    """How `keep` or `drop` measure what each layer costs, where no analysis says: on training text, which never judges.

    Attributes:
        windows: how many.
        length: input tokens of a window; None takes 128, or the model's context where it is less.
        beam: sets of layers kept at each depth; more may find a better cut.
    """

    windows: int = Field(default=WINDOWS, gt=1)
    length: int | None = Field(default=None, gt=0)
    beam: int = Field(default=1, gt=0)


class FrontierSettings(Settings):
    """Several depths from one reference, each trained alike; `inheritune frontier` runs such a recipe.

    Attributes:
        depths: how many layers each model keeps, or shares such as `80%`; None takes 90, 80, 70, 60 and 50 %.
    """

    depths: Annotated[tuple[Annotated[str, Field(coerce_numbers_to_str=True)], ...], Field(min_length=1)] | None = None


class EvaluationSettings(Settings):
    """The fixed validation windows and the paired test.

    Attributes:
        windows: greatest number of windows.
        training_windows: how many of them, evenly spread, the curve during training is measured on.
        length: input tokens of a window; None takes the training length.
        margin: the target matches when it is surely no worse than the reference by more than this, in nats a token.
        confidence: of the interval.
        speed: whether generation speed is measured.
        prompt: what the sample of generated text begins with; None generates none.
    """

    windows: int = Field(default=2000, gt=1)
    training_windows: int = Field(default=100, gt=0)
    length: int | None = Field(default=None, gt=0)
    margin: float = Field(default=0.01, ge=0)
    confidence: float = Field(default=0.95, gt=0, lt=1)
    speed: bool = True
    prompt: str | None = "def "


class AnalysisSettings(Settings):
    """The attention spectra of the reference and of the result (paper, Sec. 2).

    Attributes:
        of: whose attention is analysed.
        sequences: N.
        length: T, cut to what the model's context allows.
        tau: share of the squared singular values that defines the rank; with several, the first does, and the report
            compares all (the paper's Fig. 10).
        eta: share of the squared column norms that defines the mass.
    """

    of: tuple[Literal["reference", "result"], ...] = ("reference", "result")
    sequences: int = Field(default=100, gt=0)
    length: int = Field(default=100, gt=1)
    tau: Share | tuple[Share, ...] = (0.9, 0.8, 0.85, 0.95)
    eta: float = Field(default=0.9, gt=0, lt=1)


class RecommendedLayers(Recommendation):
    """The layers that an analysis recommends, as a recipe records them: a run goes on without the analysis."""

    analysis: str | None = None
    """The folder that was named; None where the recommendation itself was given."""


class Recipe(Settings):
    """One run.

    Attributes:
        name: of the run; its folder is `runs/NAME` unless told otherwise.
        method: `inheritune` or a baseline of App. D.
        reference: model folder, GGUF file, hub id, or `stdlib`, the model that the package ships; a model to compare
            with and, for most methods, to inherit from.
        architecture: configuration of a model to train from scratch where there is no reference: `model_type` and the
            fields of its transformers configuration.
        keep: how many of the reference's layers stay, or a share such as `80%`: the cheapest cut to so many, by the
            prices in the analysis that `layers` names, or measured when the run begins.
        drop: how many go, in place of `keep`.
        layers: depth of the target: a count (the first layers), a range `0:8` (end excluded), a list, a
            `Recommendation` or the folder of an analysis that holds one; None takes half of the reference, or what
            `keep` or `drop` say.
        parts: what is inherited of each layer: `all`, or some of `attention,mlp,norms` (Table 3).
        moved: what is done about inherited layers that get another number, in a family that computes by it: `keep`
            changes their weights so that they compute what they did, `as-is` leaves them.
        repair: whether a linear map, fitted to training text, stands in for the layers that a cut leaves out before the
            first round (docs/surgery.md).
        revive: heads of the reference whose queries and keys start at random in the first round (paper, Theorem H.1):
            the folder of an analysis, for its collapsed heads, or heads by layer, such as `{3: [0, 2]}`.
        width: share of heads, hidden and MLP units that stay, such as 0.75; None takes `1/2`.
        distill_alpha: weight of the data's cross-entropy, the rest being that of the reference's logits.
        objective: what is minimised; None is the cross-entropy, for `distill` its mix with the KL by `distill_alpha`.
        save_dtype: of the result's weights: `source` is the reference's own, and float32 where there is no reference.
            Training is in float32 weights whatever it is.
        seed: of the initial weights, the order of the data and the sequences that are analysed.
        data: the text.
        training: one round.
        growth: how the target grows.
        ablation: how layers are chosen.
        frontier: several depths, in place of `keep`; `layers` may then name an analysis with prices.
        evaluation: the validation windows and the paired test.
        analysis: the attention spectra; None makes none.
    """

    name: str = Field(min_length=1, pattern=r"^[\w.-]+$")
    method: str
    reference: str | None = None
    architecture: dict[str, Any] | None = None
    keep: Annotated[str, Field(coerce_numbers_to_str=True)] | None = None
    drop: int | None = None
    layers: int | str | tuple[int, ...] | RecommendedLayers | None = None
    parts: str = "all"
    moved: Moved = "keep"
    repair: bool = False
    revive: dict[Annotated[int, Field(ge=0)], tuple[Annotated[int, Field(ge=0)], ...]] | None = None
    width: Annotated[str, Field(coerce_numbers_to_str=True)] | None = Field(default=None, validate_default=True)
    distill_alpha: float = Field(default=0.6, ge=0, le=1)
    objective: ObjectiveSettings | None = None
    save_dtype: Literal["source", "float32", "bfloat16", "float16"] = "source"
    seed: int = Field(default=0, ge=0)
    data: DataSettings = DataSettings()
    training: RecipeTraining = RecipeTraining()
    growth: GrowthSettings = GrowthSettings()
    ablation: AblationSettings = AblationSettings()
    frontier: FrontierSettings | None = None
    evaluation: EvaluationSettings = EvaluationSettings()
    analysis: AnalysisSettings | None = AnalysisSettings()

    @field_validator("method")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if value not in METHODS:
            raise ValueError(unknown_name("method", value, METHODS))
        return value

    @field_validator("layers", mode="before")
    @classmethod
    def _reads_the_recommendation(cls, value: Any, info: ValidationInfo) -> Any:
        keep, drop = info.data.get("keep"), info.data.get("drop")
        budget = "keep" if keep is not None else "drop" if drop is not None else None
        try:
            if isinstance(value, Mapping):  # as another recipe recorded it
                return RecommendedLayers.model_validate(dict(value))
            kept = recommended_layers(value)
            if budget and kept is not None and kept is not value:
                kept = recommend(value, keep=keep, drop=drop)
        except ValidationError as error:
            expected = "expected a count, a range, a list, the folder of an analysis or what a recipe recorded of one"
            raise ValueError(f"{first_problem(error)}: {expected}") from error
        except InherituneError as error:
            raise ValueError(str(error)) from error
        if isinstance(kept, RecommendedLayers):
            return kept
        if kept is None or kept is value:
            if budget and value is not None:
                raise ValueError(f"{value!r} and {budget} are both given: expected one, or an analysis for layers")
            return value if kept is None else RecommendedLayers(**kept.as_json())
        return RecommendedLayers(**kept.as_json(), analysis=str(value))

    @field_validator("revive", mode="before")
    @classmethod
    def _reads_the_heads(cls, value: Any) -> Any:
        if not isinstance(value, str | Path):
            return value
        from inheritune.surgery.revive import collapsed_heads

        try:
            return collapsed_heads(value)
        except InherituneError as error:
            raise ValueError(str(error)) from error

    @field_validator("*")
    @classmethod
    def _belongs_to_the_method(cls, value: Any, info: ValidationInfo) -> Any:
        takers = " or ".join(name for name, other in METHODS.items() if info.field_name in other.takes)
        if not takers or "method" not in info.data or info.field_name is None:
            return value  # of all methods; or the method itself is wrong, which is said
        method, default = METHODS[info.data["method"]], cls.model_fields[info.field_name].get_default()
        if info.field_name in method.takes:
            return method.read_setting(info.field_name, value)
        if value not in (None, default):
            raise ValueError(f"method {method.name} takes no {info.field_name}: expected method {takers}")
        return default

    @model_validator(mode="after")
    def _has_a_model(self) -> Self:
        if self.reference is None and self.architecture is None:
            raise ValueError("neither reference nor architecture is given: expected a model to start from")
        if self.reference is not None and self.architecture is not None:
            raise ValueError("reference and architecture are both given: expected one")
        if self.architecture is not None and self.layers is not None:
            raise ValueError(f"layers {self.layers!r} with an architecture, which says its own depth: expected null")
        if self.reference is None and self.data.tokenizer is None:
            raise ValueError("data.tokenizer is not given and there is no reference to take it from")
        return self

    @model_validator(mode="after")
    def _has_a_teacher(self) -> Self:
        if self.objective is None:
            return self
        if self.objective.needs_teacher and self.reference is None:
            raise ValueError("the objective needs a reference and there is none: expected cross-entropy alone")
        if self.distill_alpha != type(self).model_fields["distill_alpha"].default:
            raise ValueError(f"distill_alpha {self.distill_alpha} and an objective are both given: expected one")
        return self

    def as_json(self) -> dict[str, Any]:
        """Return the settings as a record holds them."""
        return self.model_dump(mode="json")
