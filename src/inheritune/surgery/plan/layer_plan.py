"""Where each layer of a target model comes from, as data that prints itself before anything is built or trained.

Every initialisation of the paper is a `LayerPlan`: a row for each target layer says which model's which layer it takes,
and which parts of it; what is not taken keeps the random initialisation of the architecture. Layers count from 0.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from inheritune.errors import PlanError, unknown_name
from inheritune.layers import ranges
from inheritune.records.base import first_problem
from inheritune.records.surgery import PlanRow
from inheritune.surgery.plan.row import MOVED, RANDOM, LayerRow, Model, plan_table
from inheritune.surgery.plan.selection import (
    PARTS,
    Layers,
    count_of,
    describe_depth,
    layer_count,
    parse_layers,
    parse_parts,
    part_of,
    positive_count,
)

GROWTH = ("continue", "restart")
ARRANGEMENTS = ("first", "middle", "last", "evenly-spaced", "distilbert", "in-place", "stacking", "random")
"""What `LayerPlan.arranged` can do with a number of layers."""


@dataclass(frozen=True)
class LayerPlan:
    """A target model, layer by layer: `plan.rows[t]` says where target layer t comes from.

    Build one with a class method (`from_layers`, `first`, `stacking`, `append` ...) or from rows of your own; add two
    plans to put one's layers behind the other's.
    """

    rows: tuple[LayerRow, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", tuple(self.rows))
        if wrong := [row for row in self.rows if not isinstance(row, LayerRow)]:
            raise PlanError(f"a plan has {wrong[0]!r} for a row: expected a LayerRow")
        if not self.rows:
            raise PlanError("the plan has no layers: expected at least 1")

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[LayerRow]:
        return iter(self.rows)

    def __add__(self, other: LayerPlan) -> LayerPlan:
        if not isinstance(other, LayerPlan):
            return NotImplemented
        return LayerPlan(self.rows + other.rows)

    def __str__(self) -> str:
        """Return the plan as a table; one that repeats layers or takes them out of their order says so below it."""
        return plan_table(self.rows)

    # -- what the paper and a user ask for ----------------------------------------------------------------------------

    @classmethod
    def from_layers(cls, layers: Layers, depth: int, parts: str | Iterable[str] = "all") -> LayerPlan:
        """Take layers of the reference.

        Args:
            layers: a count (12: the first 12 layers, 0 to 11), a range as text with its end excluded as in Python
                (`"0:12"`: layers 0 to 11), a list as text (`"0,2,4"`, ranges allowed in it) or any iterable of ints.
                The text `"12"` is a count; the list of the one layer 12 is `"12,"`. Layers may repeat, in any order.
                A `Recommendation`, or the folder of an analysis that holds one, stands for the layers that it keeps.
            depth: number of layers of the reference.
            parts: what to copy of each layer, see `parse_parts`; the rest is random (Table 3).

        Raises:
            PlanError: a layer the reference does not have, no layer at all, unreadable text, an unknown part, or a
                recommendation for another depth.
            OutputError: the analysis in the folder holds no recommendation.
        """
        return _take("reference", parse_layers(layers, depth), parts)

    @classmethod
    def first(cls, layers: int, depth: int, parts: str | Iterable[str] = "all") -> LayerPlan:
        """Take the reference's first `layers` layers (Algorithm 1)."""
        return cls.from_layers(layer_count(layers, depth), depth, parts)

    @classmethod
    def middle(cls, layers: int, depth: int, parts: str | Iterable[str] = "all") -> LayerPlan:
        """Take `layers` layers from the reference's middle (Fig. 2, Table 4); an odd remainder is left at the end."""
        start = (depth - layer_count(layers, depth)) // 2
        return cls.from_layers(range(start, start + layers), depth, parts)

    @classmethod
    def last(cls, layers: int, depth: int, parts: str | Iterable[str] = "all") -> LayerPlan:
        """Take the reference's last `layers` layers, the lazy ones in the paper's models (Fig. 2, 3, Table 4)."""
        return cls.from_layers(range(depth - layer_count(layers, depth), depth), depth, parts)

    @classmethod
    def in_place(cls, layers: Layers, depth: int, parts: str | Iterable[str] = "all") -> LayerPlan:
        """Keep the reference's depth and these of its layers where they are; all other layers are random (Fig. 23)."""
        kept = parse_layers(layers, depth)
        if twice := [layer for layer in kept if kept.count(layer) > 1]:
            raise PlanError(f"layer {twice[0]} is named twice: a layer that is kept in place can stand there once")
        return cls(tuple(LayerRow("reference", i, parse_parts(parts)) if i in kept else RANDOM for i in range(depth)))

    @classmethod
    def random(cls, layers: int) -> LayerPlan:
        """Take nothing: `layers` layers at their random initialisation (the embeddings still come from the model)."""
        return cls((RANDOM,) * positive_count(layers))

    @classmethod
    def stacking(cls, half: int) -> LayerPlan:
        """Stack a trained model of `half` layers on itself: its layers 0 .. half-1, twice (App. D, baseline stacking).

        The rows come from `"target"`, the model that is being stacked; layers in new places are left as they are.
        """
        return _take("target", [*range(positive_count(half))] * 2).with_moved("as-is")

    @classmethod
    def hybrid_stacking(cls, layers: int, depth: int) -> tuple[LayerPlan, LayerPlan]:
        """Return the two steps of hybrid stacking (App. D): the reference's first half of `layers`, then stacking.

        The model made by the first plan is trained before the second plan stacks it on itself.
        """
        half = _half(layer_count(layers, depth))
        return cls.first(half, depth), cls.stacking(half)

    @classmethod
    def evenly_spaced(cls, layers: int, depth: int, parts: str | Iterable[str] = "all") -> LayerPlan:
        """Take `layers` layers of the reference at even distances, each once and in order, its first and last included.

        Target layer i takes layer i * (depth - 1) / (layers - 1), rounded to the nearest; one layer alone is the first.
        """
        steps = max(layer_count(layers, depth) - 1, 1)
        return cls.from_layers([(2 * i * (depth - 1) + steps) // (2 * steps) for i in range(layers)], depth, parts)

    @classmethod
    def distilbert(cls, depth: int, layers: int, parts: str | Iterable[str] = "all") -> LayerPlan:
        """Take every other layer of the teacher, DistilBERT's way (App. D, distillation with teacher initialisation).

        The paper's 16 of 24 layers are 0, 2 ... 22 and then 18 .. 21: the extra layers are the last ones before the
        last pair, so that they come a second time, out of order. Any other depth follows the same rule. Fewer than
        every other layer (our generalisation) are spread evenly: target layer i takes layer floor(i * depth / layers).
        Without repeats, in order: `evenly_spaced`.
        """
        alternate = list(range(0, depth, 2))
        extra = layer_count(layers, depth) - len(alternate)
        if extra < 0:
            return cls.from_layers([i * depth // layers for i in range(layers)], depth, parts)
        start = max(0, depth - 2 - extra)
        return cls.from_layers([*alternate, *range(start, start + extra)], depth, parts)

    @classmethod
    def arranged(cls, how: str, layers: Layers, depth: int, parts: str | Iterable[str] = "all") -> LayerPlan:
        """Return one of the plans above by its name, one of `ARRANGEMENTS`, as a command takes it.

        `layers` is how many; `"first"` and `"in-place"` take all that `from_layers` takes. `"random"` copies no parts.
        The rows of `"stacking"` come from the reference here, which is stacked on itself.

        Raises:
            PlanError: the name is unknown, or the layers or parts do not fit it.
        """
        if how not in ARRANGEMENTS:
            raise PlanError(unknown_name("arrangement of layers", how, ARRANGEMENTS))
        if how in ("first", "in-place"):
            return (cls.from_layers if how == "first" else cls.in_place)(layers, depth, parts)
        if (count := count_of(layers)) is None:
            example = max(depth // 2, 1) * (2 if how == "stacking" else 1)
            raise PlanError(f"layers {layers!r} with {how!r}: expected a count, for example {example}")
        if how == "stacking":
            return cls.from_layers([*range(_half(count))] * 2, depth, parts).with_moved("as-is")
        if how == "random":
            if parse_parts(parts) != PARTS:
                raise PlanError(f"random layers copy nothing, parts {parts} neither: leave the parts out")
            return cls.random(count)
        if how == "distilbert":
            return cls.distilbert(depth, count, parts)
        named = {"middle": cls.middle, "last": cls.last, "evenly-spaced": cls.evenly_spaced}
        return named[how](count, depth, parts)

    @classmethod
    def append(
        cls,
        trained_layers: int,
        upto: Layers,
        mode: str = "continue",
        zero_output: bool = False,
        *,
        start: LayerPlan | None = None,
        depth: int | None = None,
    ) -> LayerPlan:
        """Grow a trained target (Algorithm 1, step 4) by layers of the reference.

        Args:
            trained_layers: the number of layers l the target has now.
            upto: a count is the number of layers it gets, by the reference's next layers: those behind the last one
                that `start` takes, in order, so that none comes twice (after layers 0 and 2 come 3, 4 ...). Anything
                else names the layers that are appended, whole, see `from_layers`.
            mode: `"continue"` keeps the target's trained layers 0 .. l-1 and puts the reference's layers behind them;
                `"restart"` takes the layers of `start` and the new ones afresh from the reference.
            zero_output: let the new layers start without output, so that the grown model says exactly what the target
                said and its loss does not jump; only with `"continue"`.
            start: the plan that the target was first made with; the next layers take the parts that its last one takes.
                None stands for the reference's first l layers, whole.
            depth: number of layers of the reference; None where it is not known yet, and `upto` is a count.

        Raises:
            PlanError: `upto` is not more than `trained_layers`, the mode is unknown or takes no `zero_output`, or the
                reference does not have the layers.
        """
        _check_growth(mode, zero_output)
        kept = _take("target", range(positive_count(trained_layers)))
        first = _take("reference", range(trained_layers)) if start is None else start
        if (count := count_of(upto)) is not None:
            if count <= (now := len(kept)):
                raise PlanError(f"cannot grow {now} layers to {count}: expected {now + 1} or more")
            rows = first._extended(count, depth)
            first, new = LayerPlan(rows[:trained_layers]), rows[trained_layers:]
        elif depth is None:
            raise PlanError(f"cannot append layers {upto!r} of a reference of unknown depth: pass depth=")
        else:
            new = _take("reference", parse_layers(upto, depth)).rows
        return (first if mode == "restart" else kept) + cls(tuple(replace(row, zero_output=zero_output) for row in new))

    @classmethod
    def insert(
        cls, start: LayerPlan, layers: Iterable[int], mode: str = "continue", zero_output: bool = False
    ) -> LayerPlan:
        """Grow a trained target by layers of the reference, each at its place between the trained ones.

        Args:
            start: the layers of the reference that the target has, ascending.
            layers: the reference's layers that it gets; they take the parts that the first of `start` takes.
            mode: as in `append`.
            zero_output: as in `append`.

        Raises:
            PlanError: the layers of `start` are not ascending, or a layer is there already.
        """
        _check_growth(mode, zero_output)
        places = {row.source: place for place, row in enumerate(start) if row.model == "reference"}
        held = [layer for layer in places if layer is not None]
        if held != sorted(held) or len(held) != len(start):
            raise PlanError("layers can be put back between layers of the reference in its own order alone")
        new = [*layers]
        if there := [layer for layer in new if layer in places]:
            raise PlanError(f"layer {there[0]} of the reference is in the target already")
        like = start.rows[0]
        rows = [
            LayerRow("reference", layer, like.parts, zero_output, moved=like.moved)
            if layer in new
            else LayerRow("target", places[layer], moved=like.moved)
            if mode == "continue"
            else start.rows[places[layer]]
            for layer in sorted([*held, *new])
        ]
        return cls(tuple(rows))

    def _extended(self, upto: int, depth: int | None) -> tuple[LayerRow, ...]:
        """Return `upto` rows: those of this plan, then the reference's layers behind the last one it takes."""
        taken = [row.source for row in self.rows if row.model == "reference" and row.source is not None]
        missing, first = upto - len(self), max(taken, default=-1) + 1
        if depth is not None and missing > (behind := max(depth - first, 0)):
            raise PlanError(
                f"cannot grow to {upto} layers: the plan starts with layers {ranges(taken)} of the reference, and "
                f"{behind or 'none'} of its {depth} are behind the last of them: expected at most "
                f"{len(self) + behind}, or the layers to append, for example '{depth - 1},'"
            )
        last = self.rows[-1]
        new = LayerRow("reference", first, last.parts or PARTS, moved=last.moved)
        return (*self.rows, *(replace(new, source=layer) for layer in range(first, first + missing)))[:upto]

    def with_moved(self, moved: str) -> LayerPlan:
        """Return this plan with layers that get another number done as `moved` says: `"keep"` or `"as-is"`.

        In a family whose blocks compute by their number, `"keep"` changes the weights so that they compute what they
        did; `"as-is"` leaves them, as the paper's stacking does. `from_layers` and all plans made with it keep.

        Raises:
            PlanError: it is neither.
        """
        if moved not in MOVED:
            raise PlanError(unknown_name("way to move a layer", str(moved), MOVED))
        return LayerPlan(tuple(replace(row, moved=moved) for row in self.rows))

    def revive(self, heads: Mapping[int, Iterable[int]], model: Model = "reference") -> LayerPlan:
        """Return this plan with the query and key weights of some heads left at their random initialisation.

        Theorem H.1: hardly any gradient reaches the queries and keys of a collapsed head, so that training alone does
        not bring it back. The head's values, its output and the rest of the block are copied as before. `heads` are
        query heads by layer of `model`, 0-based. Rows that copy no attention are random there already.

        Raises:
            PlanError: no row of the plan takes any of these heads.
        """
        wanted = {layer: tuple(which) for layer, which in heads.items()}
        rows = tuple(
            replace(row, revived=(*row.revived, *wanted[row.source]))
            if row.model == model and row.source in wanted and "attention" in row.parts
            else row
            for row in self.rows
        )
        if rows == self.rows and any(wanted.values()):
            heads_named = ", ".join(f"{layer}.{head}" for layer in sorted(wanted) for head in wanted[layer])
            raise PlanError(
                f"the heads to revive ({heads_named}, as layer.head of the {model}) are in layers whose attention the "
                "plan does not take"
            )
        return LayerPlan(rows)

    # -- what the surgery asks a plan ---------------------------------------------------------------------------------

    @property
    def models(self) -> frozenset[Model]:
        """The models that rows take layers from."""
        return frozenset(row.model for row in self.rows if row.model is not None)

    @property
    def rest(self) -> Model:
        """Which model the embeddings, the final norm, the head and every other weight outside the blocks come from.

        `"target"` where any layer comes from it, because those weights were trained together; else `"reference"`.
        """
        return "target" if "target" in self.models else "reference"

    @property
    def copies_all(self) -> bool:
        """Whether every layer is copied whole and left so: nothing random, nothing zero."""
        return all(row.parts == PARTS and not row.changes for row in self.rows)

    def origin(self, key: str, blocks_path: str) -> tuple[Model, str] | None:
        """Return the model and the weight there that the new model's weight `key` is copied from; None: it is random.

        The names are alike but for the layer's number behind `blocks_path`, for example `model.layers`.
        """
        found = re.fullmatch(rf"{re.escape(blocks_path)}\.(\d+)\.(.+)", key)
        if not found:
            return self.rest, key
        row = self.rows[int(found[1])]
        if row.model is None or (row.parts != PARTS and part_of(found[2]) not in row.parts):
            return None
        return row.model, f"{blocks_path}.{row.source}.{found[2]}"

    def traced(self, target: LayerPlan) -> LayerPlan:
        """Return where the layers were first taken from; `target` is the traced plan of the model that rows name so."""
        rows = list(self.rows)
        for place, row in enumerate(rows):
            if row.model == "target":
                first = target.rows[row.source or 0]
                rows[place] = replace(first, moved="as-is") if row.moved == "as-is" else first
        return LayerPlan(tuple(rows))

    @property
    def reference_layers(self) -> str:
        """The layers of the reference that rows take, as ranges with both ends included; empty for none."""
        taken = [row.source for row in self.rows if row.model == "reference" and row.source is not None]
        return ranges(taken) if taken else ""

    def check(self, depths: Mapping[str, int]) -> None:
        """Confirm that every row names a layer its model has; `depths` are those of the models there are, by name.

        Raises:
            PlanError: a row's model is not there, or does not have the layer.
        """
        for index, row in enumerate(self.rows):
            if row.model is None or row.source is None:
                continue
            if row.model not in depths:
                raise PlanError(f"layer {index} of the plan comes from the {row.model} model: pass {row.model}=")
            if row.source >= (depth := depths[row.model]):
                raise PlanError(
                    f"layer {index} of the plan takes layer {row.source}, the {row.model} has {describe_depth(depth)}"
                )

    # -- records ------------------------------------------------------------------------------------------------------

    def as_records(self) -> list[PlanRow]:
        """Return the rows as a record holds them."""
        return [PlanRow(target=target, **vars(row)) for target, row in enumerate(self.rows)]

    @classmethod
    def from_records(cls, records: Iterable[PlanRow | Mapping[str, Any]]) -> LayerPlan:
        """Read a plan back from `as_records`, or from the same as JSON.

        Raises:
            PlanError: a row is missing, out of order, or not as `as_records` writes it.
        """
        rows = []
        for index, record in enumerate(records):
            try:
                row = record if isinstance(record, PlanRow) else PlanRow.model_validate(record)
            except ValidationError as error:
                raise PlanError(f"row {index} of the plan is {record!r}: {first_problem(error)}") from error
            if row.target != index:
                raise PlanError(f"row {index} of the plan is for target layer {row.target}: expected {index}")
            rows.append(LayerRow(row.model, row.source, row.parts, row.zero_output, row.revived, row.moved))
        return cls(tuple(rows))


def _check_growth(mode: str, zero_output: bool) -> None:
    if mode not in GROWTH:
        raise PlanError(unknown_name("growth mode", mode, GROWTH))
    if mode == "restart" and zero_output:
        raise PlanError("growth mode 'restart' keeps no trained layers whose function could be preserved")


def _take(model: Model, layers: Iterable[int], parts: str | Iterable[str] = "all") -> LayerPlan:
    names = parse_parts(parts)
    return LayerPlan(tuple(LayerRow(model, layer, names) for layer in layers))


def _half(layers: int) -> int:
    if positive_count(layers) % 2:
        raise PlanError(f"stacking doubles a model, so its {layers} layers must be even; try {layers + 1}")
    return layers // 2
