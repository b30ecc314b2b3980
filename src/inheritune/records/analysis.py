"""`spectra.json` and `maps.json`: what an analysis of a model's attention writes."""

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, computed_field, field_validator, model_validator

from inheritune.layers import plural, ranges, runs
from inheritune.records.base import Document, Environment, Record

Mask = Literal["causal", "full"]
"""`causal`: what the model computes. `full`: the softmax of the very same logits without the mask."""

HeadClass = Literal["sink", "uniform", "potent"]
Index = Annotated[int, Field(ge=0)]


def _names_a_share(text: str) -> str:
    if not 0 < float(text) < 1:
        raise ValueError("expected a tau between 0 and 1 for a name")
    return text


class LayerMeasures(Record):
    """One layer under one mask; lists have an entry for each head, see `Spectra`."""

    rank: tuple[float, ...] = Field(min_length=1)
    mass: tuple[float, ...]
    max_rank: float
    avg_mass: float
    lazy: bool
    rank_error: tuple[float | None, ...] | None = None
    entropy: tuple[float | None, ...] | None = None
    stable_rank: tuple[float | None, ...] | None = None
    sink_column: tuple[float | None, ...] | None = None
    sink_epsilon: tuple[float | None, ...] | None = None
    ranks: dict[Annotated[str, AfterValidator(_names_a_share)], tuple[float, ...]] = {}
    """The rank at each tau that was asked for."""

    def measured(self) -> set[str]:
        """Return which lists there are."""
        return {name for name, value in self if isinstance(value, tuple)} | {f"ranks.{tau}" for tau in self.ranks}


class LayerGradients(Record):
    """Norms of the gradients of one layer's heads, and their bounds (Theorem H.1); see `GradientProbe`."""

    query: tuple[float | None, ...]
    key: tuple[float | None, ...]
    query_bound: tuple[float | None, ...]
    key_bound: tuple[float | None, ...]


class LayerAnalysis(Record):
    """One layer that has attention."""

    index: Index
    causal: LayerMeasures | None = None
    full: LayerMeasures | None = None
    classes: tuple[HeadClass, ...] | None = None
    gradients: LayerGradients | None = None

    @model_validator(mode="after")
    def _has_one_number_of_heads(self) -> Self:
        lists: dict[str, tuple[object, ...] | None] = {"classes": self.classes}
        for part in ("causal", "full", "gradients"):
            lists |= {f"{part}.{name}": value for name, value in self[part] or () if isinstance(value, tuple)}
        for mask in (self.causal, self.full):
            lists |= {f"ranks.{tau}": values for tau, values in (mask.ranks if mask else {}).items()}
        heads = next((len(mask.rank) for mask in (self.causal, self.full) if mask), None)
        for name, values in lists.items():
            if values is not None and len(values) != heads:
                raise ValueError(f"{name} has {len(values)} entries, expected {heads}, one for each head")
        return self


class GradientRun(Record):
    """What the gradient probe ran on."""

    sequences: int
    loss: float  # mean next-token cross-entropy, nats a token


class BlockAnalysis(Record):
    """One whole block; see `BlockMeasures`."""

    index: Index
    influence: float | None = None
    mlp_rank: float | None = None
    mlp_rank_error: float | None = None
    mlp_mass: float | None = None


class Recommendation(Record):
    """With which layers to start, and why; `inherit`, `run` and `LayerPlan.from_layers` take it as `layers`.

    Iterating over it gives the layers that stay.

    Attributes:
        depth: number of layers of the analysed model.
        start: l, with how many layers to start Inheritune; the first ones, unless the cut was measured.
        cut: the layers to cut, 0-based, ascending.
        reason: one sentence.
        others: which layers other rules would cut, as many as `cut`, by the rule's name; rules agree where the lists
            do.
        measured: whether the cut was chosen by the losses of cuts (`ablate`); else by the paper's rule of thumb.
        order: the cut layers by what they cost, the dearest first, where that was measured: growth puts them back so.
        losses: nats a token before any training, on one set of windows: of the whole model (`whole`), of the
            recommended cut (`keep`) and of the others, by their names; null where a cut's loss was not measured.
        uniform: the loss of guessing evenly among all tokens, where losses were measured.
    """

    depth: int = Field(ge=1, le=100_000)
    start: int
    cut: tuple[int, ...]
    reason: str
    others: dict[str, tuple[int, ...]] = {}
    measured: bool = False
    order: tuple[int, ...] = ()
    losses: dict[str, float | None] = {}
    uniform: float | None = None

    @model_validator(mode="after")
    def _fits_the_depth(self) -> Self:
        cut = set(self.cut)
        if not (1 <= self.start <= self.depth and len(cut) < self.depth and all(0 <= i < self.depth for i in cut)):
            raise ValueError(f"start {self.start} and cut {self.cut} do not fit a model of {self.depth} layers")
        return self

    def __iter__(self) -> Iterator[int]:  # type: ignore[override]  # it stands for layers, not for fields
        return iter(self.keep)

    def __len__(self) -> int:
        return len(self.keep)

    def __contains__(self, item: object) -> bool:
        return item in self.keep or super().__contains__(item)

    def __str__(self) -> str:
        return self.table()

    @computed_field  # type: ignore[prop-decorator]
    @property
    def keep(self) -> tuple[int, ...]:
        """The layers that stay, 0-based, ascending."""
        return tuple(sorted(set(range(self.depth)) - set(self.cut)))

    @property
    def option(self) -> str:
        """What `--layers` and a recipe's `layers` take to say the same, the end of a range excluded: `0:12`."""
        return ",".join(f"{run[0]}:{run[-1] + 1}" for run in runs(self.keep))

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Return what to do, the layers as ranges, the loss, the layers as a list; one row for each thing."""
        rows = [("keep", self.keep, "keep"), ("cut", self.cut, "")]
        rows += [(f"{name} would cut", layers, name) for name, layers in self.others.items()]
        return [
            (what, ranges(layers), self._loss(name), ", ".join(map(str, layers)) or "-") for what, layers, name in rows
        ]

    def _loss(self, name: str) -> str:
        loss = self.losses.get(name)
        return "" if loss is None else f"{loss:.3f}"

    def warnings(self) -> list[str]:
        """Return what a user has to know before following the recommendation, a line each."""
        said, loss = [], self.losses.get("keep")
        if not self.measured and self.cut:
            said.append("the paper's rule of thumb, unmeasured: analyze --ablate measures what each layer costs")
        if loss is not None and self.uniform is not None and loss > self.uniform:
            said.append(
                f"before training this cut has a loss of {loss:.2f}, above that of uniform guessing, "
                f"{self.uniform:.2f}: it has lost all that the model knew"
            )
        return said

    def table(self) -> str:
        """Return the recommendation as text: the plan with both ends of a range included, the reason, the option."""
        head = ("", "ranges", "untrained loss" if self.losses else "", "layers")
        lines = [head, *self.rows()]
        widths = [max(len(line[column]) for line in lines) for column in range(3)]
        doing = f"keep {plural(len(self), 'layer')}" if self.measured else f"start with {plural(self.start, 'layer')}"
        title = f"{doing} of {self.depth}, numbered from 0, both ends of a range included"
        if (whole := self._loss("whole")) and self.uniform is not None:
            title += f"; the whole model's loss is {whole}, uniform guessing {self.uniform:.3f}"
        shown = [*range(4)] if self.losses else [0, 1, 3]
        body = ["  ".join(line[column].ljust((*widths, 0)[column]) for column in shown) for line in lines]
        said = [f"note: {line}" for line in self.warnings()]
        how = f"how: --layers {self.option} (the end is excluded)"
        return "\n".join([title, *(line.rstrip() for line in body), f"why: {self.reason}", *said, how])


class AnalysedText(Record):
    """Where the analysed tokens are from."""

    source: str | None = None
    tokens: int | None = None  # in all of the source
    seed: int | None = None


class AnalysisRecord(Document):
    """`spectra.json`."""

    KIND = "analysis"
    SCHEMA = 2
    AGAIN = "run inheritune analyze again"

    model: str | None = None  # what the model is called: a folder or hub id
    identity: str | None = None  # what the model is, wherever it lies (`model_identity`); None where that is not known
    depth: int | None = None
    tau: float
    taus: tuple[float, ...] = ()
    eta: float
    sequences: int = Field(ge=1)
    length: int = Field(ge=1)
    masks: tuple[Mask, ...] = Field(min_length=1)
    layers: tuple[LayerAnalysis, ...] = Field(min_length=1)
    blocks: tuple[BlockAnalysis, ...] | None = None
    angular_distance: tuple[tuple[float | None, ...], ...] | None = None
    """Row l: the distances from the input of block l to that of block l + n, n = 1, 2, ..."""
    gradients: GradientRun | None = None
    recommendation: Recommendation | None = None
    data: AnalysedText | None = None
    environment: Environment = Environment()
    created: str | None = None

    @field_validator("masks")
    @classmethod
    def _names_each_mask_once(cls, masks: tuple[Mask, ...]) -> tuple[Mask, ...]:
        if len(set(masks)) < len(masks):
            raise ValueError("expected each mask once")
        return masks

    @model_validator(mode="after")
    def _has_layers_that_fit(self) -> Self:
        before = -1
        for i, layer in enumerate(self.layers):
            if not before < layer.index < (self.depth or layer.index + 1):
                depth = "" if self.depth is None else f" and below the depth, {self.depth}"
                raise ValueError(f"layers[{i}].index is {layer.index}, expected more than {before}{depth}")
            before = layer.index
            for mask in self.masks:
                part, first = layer[mask], self.layers[0][mask]
                if part is None or part.measured() != first.measured():
                    raise ValueError(f"layers[{i}].{mask} has not the measures that are expected of each layer")
        return self

    @model_validator(mode="after")
    def _has_blocks_that_fit(self) -> Self:
        rows, blocks = self.angular_distance, self.blocks
        if rows is not None and blocks is not None and [len(row) for row in rows] != [*range(len(blocks), 0, -1)]:
            raise ValueError(f"angular_distance has not the expected rows of {len(blocks)} to 1 numbers")
        if blocks is not None and self.depth not in (None, len(blocks)):
            raise ValueError(f"blocks has {len(blocks)} entries, expected {self.depth}, the depth")
        return self


class AttentionMap(Record):
    """The attention of one head on one sequence."""

    layer: Index
    head: Index
    mask: Mask
    role: str  # why it is shown: `potent`, `laziest`, `collapsed`, or its own layer and head
    rank: int | None = None  # k* of this very matrix
    mean_rank: float | None = None  # Rank(h, l), the mean over the sequences
    tokens: tuple[str, ...] | None = None
    text: str | None = None  # of the tokens together: a character may be split over several
    values: tuple[tuple[float, ...], ...] = Field(min_length=1)  # (T, T)

    @model_validator(mode="after")
    def _is_square(self) -> Self:
        size = len(self.values)
        for i, row in enumerate(self.values):
            if len(row) != size:
                raise ValueError(f"values[{i}] has {len(row)} numbers, expected {size}, as many as rows")
        return self


class MapsRecord(Document):
    """`maps.json`, beside `spectra.json`."""

    KIND = "maps"
    AGAIN = "run inheritune analyze again"
    INDENT = None

    maps: tuple[AttentionMap, ...]
