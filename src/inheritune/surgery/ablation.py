"""The price of every layer: a model's loss without it, and the cheapest way down to any depth.

Which layers to cut is measured, not read off their rank. `ablate` computes the loss without each layer (leave-one-out),
then deletes greedily: each time the layer whose removal costs least, as the layers that are left now stand. Deletion by
loss chooses better layers than Block Influence (Minitron, arXiv 2407.14679, table 13). The prices of single layers do
not add up: where two layers stand in for each other, either is cheap as long as the other is there.

The windows that choose layers must not be the ones that judge the result.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import time
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from inheritune.decoder import Decoder
from inheritune.decoder.streaming import StreamedDecoder, load_decoder
from inheritune.errors import InherituneError, ModelError, PlanError
from inheritune.evaluation.removal import Removed, open_remover
from inheritune.progress import note, progress
from inheritune.spectra.checks import check_tokens, check_weights
from inheritune.storage import user_path, written_file
from inheritune.surgery.config.blueprint import Draft
from inheritune.surgery.plan.layer_plan import LayerPlan
from inheritune.surgery.plan.selection import whole_number

Order = tuple[int, ...]
"""Layers in the order of their deletion."""

SAVE_SECONDS = 10.0
"""Least time between two times that what is measured so far is written to the disk."""


@dataclass(frozen=True)
class Cut:
    """One set of layers that is left out.

    Attributes:
        removed: the layers, 0-based, in the order in which they were deleted.
        losses: (N,) float64, nats per token of each window without them.
    """

    removed: Order
    losses: np.ndarray = field(repr=False)

    @property
    def loss(self) -> float:
        """Mean over the windows."""
        return float(self.losses.mean())


@dataclass(frozen=True)
class Ablation:
    """What each layer costs, in nats a token.

    Attributes:
        whole: the model as it is; nothing is removed.
        singles: for each layer, the model without it; None where the model cannot do without this layer alone.
        refused: for each such layer, why.
        cuts: the best set found of 1, 2, ... layers; `cuts[k - 1].removed` has k of them.
        steps: the greedy deletions, one by one, on the way to the last of `cuts`. With a beam of 1 they are `cuts`.
        others: the further sets that were asked for, in their order; None where no model without them can be made.
        length: T, predicted tokens of a window.
        beam: how many sets were kept at each depth.
    """

    whole: Cut
    singles: tuple[Cut | None, ...]
    refused: dict[int, str]
    cuts: tuple[Cut, ...]
    steps: tuple[Cut, ...]
    others: tuple[Cut | None, ...]
    length: int
    beam: int

    @property
    def layers(self) -> int:
        """The number of layers L of the model."""
        return len(self.singles)

    @property
    def loss(self) -> float:
        """The model's loss as it is."""
        return self.whole.loss

    @property
    def losses(self) -> np.ndarray:
        """(layers,) float64: the loss without each layer; NaN where the model cannot do without it."""
        return np.array([math.nan if cut is None else cut.loss for cut in self.singles])

    @property
    def prices(self) -> np.ndarray:
        """(layers,) float64: `losses` less `loss`."""
        return self.losses - self.loss

    @property
    def path(self) -> list[tuple[int, float]]:
        """The layers in the order of their deletion, each with the loss once it is gone too."""
        return [(cut.removed[-1], cut.loss) for cut in self.steps]

    def kept(self, depth: int) -> tuple[int, ...]:
        """Return the layers that stay in the best cut to `depth` layers, ascending.

        Raises:
            PlanError: the path does not lead there.
        """
        least = self.layers - len(self.cuts)
        if not least <= whole_number(depth) <= self.layers:
            raise PlanError(f"a depth of {depth}: the deletions measured lead from {self.layers} layers to {least}")
        gone = self.cuts[self.layers - depth - 1].removed if depth < self.layers else ()
        return tuple(layer for layer in range(self.layers) if layer not in gone)


def ablate(
    model: PreTrainedModel | Decoder | str | Path,
    tokens: Any,
    *,
    depth: int | None = 1,
    beam: int = 1,
    others: Iterable[Iterable[int]] = (),
    stream: bool | None = None,
    store: str | Path | None = None,
) -> Ablation:
    """Measure what each layer costs, and delete greedily down to `depth` layers. The model is not changed.

    Args:
        model: a model, a folder in Hugging Face format, a hub id, or a decoder that is open already.
        tokens: (N, T + 1) integer token ids (NumPy, PyTorch or nested lists), the windows that choose; T at most the
            model's context.
        depth: layers that are left at the end of the path; as many as the model has leave out the path, None takes half
            of them.
        beam: how many sets of layers are kept at each depth; more than 1 can find a better set than greedy deletion,
            for as many times the work.
        others: further sets of layers to leave out, such as those that another rule would cut.
        stream: read the checkpoint layer by layer; None does so when it would fill most of the memory that is free.
        store: a file that the losses measured so far are written to now and then, and taken from if the whole model has
            the losses on the first windows that the file has for it (to 1e-6: other weights have others).

    Raises:
        InherituneError: `depth` or `beam` is out of range, or the model has one layer.
        DataError: the tokens are not (N, T + 1) integers that the model can read.
        ModelError: no such model, damaged weights, or its blocks cannot be run one by one.
        OutputError: `store` cannot be written.
    """
    windows = check_tokens(tokens).numpy()
    decoder = load_decoder(model, stream)
    layers = decoder.layers
    check_ablation(layers, depth, beam)
    further = [tuple(dict.fromkeys(order)) for order in others]
    if wrong := [order for order in further if not {*order} < {*range(layers)}]:
        raise PlanError(f"layers {[*wrong[0]]} to leave out: expected some of 0 to {layers - 1}, and not all")
    if not isinstance(decoder, StreamedDecoder):  # which looks at each block's as it reads them
        check_weights(decoder)
    return _Search(decoder, windows, None if store is None else user_path(store)).run(
        depth or max(layers // 2, 1), beam, further
    )


def check_ablation(layers: int, depth: int | None, beam: int) -> None:
    """Refuse what cannot be measured of a model of so many layers; no depth stands for one that fits.

    Raises:
        InherituneError: `depth` or `beam` is out of range, or the model has one layer.
    """
    if layers == 1:
        raise InherituneError("the model has one layer: expected at least 2, there is none to leave out")
    for name, value in (("depth", depth), ("beam", beam)):
        if value is not None and type(value) is not int:
            raise InherituneError(f"{name} {value!r}: expected a whole number")
    if depth is not None and not 1 <= depth <= layers:
        raise InherituneError(f"depth {depth}: expected 1 to {layers}, the layers of the model")
    if beam < 1:
        raise InherituneError(f"beam {beam}: expected at least 1")


class _Search:
    """The search among sets of layers, and the losses measured for it so far."""

    def __init__(self, decoder: Decoder, windows: np.ndarray, store: Path | None) -> None:
        self._decoder, self._windows, self.layers = decoder, windows, decoder.layers
        self._refusals: dict[Removed, str] = {}
        self._remover = open_remover(decoder, windows)
        self._table = _Table(decoder.layers, len(windows), store, _digest(decoder, windows))
        first = windows[: self._remover.group]
        if self._table.losses and not self._table.agrees(self._remover.losses(first, [Removed()])[0]):
            self._table.losses.clear()
        singles = {layer: self._refusal(Removed([layer])) for layer in range(self.layers)}
        self.refused = {layer: why for layer, why in singles.items() if why}
        if len(self.refused) == self.layers:
            raise ModelError(f"no layer of this model can be left out: {self.refused[0]}")

    def run(self, depth: int, beam: int, others: Sequence[Order]) -> Ablation:
        """Measure the whole model, each layer, the path and other sets; see `ablate`."""
        fitting = [removed for removed in map(Removed, others) if not self._refusal(removed)]
        total = 1 + self.layers + beam * sum(range(depth + 1, self.layers)) + len({*fitting})
        with progress("leaving out layers", total * len(self._windows), self._table.count) as advance:
            self._advance = advance
            singles = [Removed([layer]) for layer in range(self.layers) if layer not in self.refused]
            self._measure([Removed(), *singles])
            cuts, steps = self._descend(depth, beam)
            for part in range(0, len(fitting), self.layers):  # as many together as are held for single layers
                self._measure(fitting[part : part + self.layers])
        return Ablation(
            whole=self._cut(()),
            singles=tuple(None if i in self.refused else self._cut((i,)) for i in range(self.layers)),
            refused=self.refused,
            cuts=tuple(self._cut(order) for order in cuts),
            steps=tuple(self._cut(order) for order in steps),
            others=tuple(None if self._refusal(Removed(order)) else self._cut(order) for order in others),
            length=self._windows.shape[1] - 1,
            beam=beam,
        )

    def _descend(self, depth: int, beam: int) -> tuple[list[Order], list[Order]]:
        """Return the best set of each size, and the deletions on the way to the last, each in order of deletion."""
        held: list[Order] = [()]
        cuts: list[Order] = []
        for _ in range(self.layers - depth):
            children = {Removed((*order, i)): (*order, i) for order in reversed(held) for i in self._left(order)}
            if self.refused:  # layers depend on one another: no set is run before it is known to fit
                children = {removed: order for removed, order in children.items() if not self._refusal(removed)}
            self._measure([*children])
            ranked = sorted(children, key=lambda removed: (self._table.mean(removed), sorted(removed)))
            fitting = (children[removed] for removed in ranked if not self._refusal(removed))
            held = list(itertools.islice(fitting, beam))
            if not held:
                break
            cuts.append(held[0])
        last = cuts[-1] if cuts else ()
        return cuts, [last[: count + 1] for count in range(len(last))]

    def _left(self, order: Order) -> Iterable[int]:
        return (layer for layer in range(self.layers) if layer not in order)

    def _cut(self, order: Order) -> Cut:
        return Cut(order, self._table.losses[Removed(order)])

    def _measure(self, removals: Sequence[Removed]) -> None:
        """See to it that the losses without each of the sets are known."""
        for start in range(0, len(self._windows), self._remover.group):
            part = slice(start, start + self._remover.group)
            if missing := self._table.missing(removals, part):
                windows = self._windows[part]
                advance = partial(self._advance_by, len(missing) * len(windows))
                self._table.put(missing, part, self._remover.losses(windows, missing, advance))

    def _advance_by(self, size: int, share: float) -> None:
        self._advance(size * share)

    def _refusal(self, removed: Removed) -> str:
        """Return why no model without these layers can be made, or an empty text."""
        if removed not in self._refusals:
            plan = LayerPlan.from_layers(tuple(self._left(tuple(removed))), self.layers)
            try:
                Draft.of(plan, self._decoder.model.config)
                self._refusals[removed] = ""
            except PlanError as error:
                self._refusals[removed] = str(error)
        return self._refusals[removed]


class _Table:
    """The losses of windows without sets of layers: in memory, and in a file from which the work can go on.

    Attributes:
        losses: for each set (N,) float64, NaN where a window has not been measured.
    """

    def __init__(self, layers: int, windows: int, store: Path | None, digest: str) -> None:
        self.losses: dict[Removed, np.ndarray] = {}
        self._shape, self._store, self._digest, self._saved = (layers, windows), store, digest, time.monotonic()
        if store is not None and store.is_file():
            self.losses = _read_losses(store, digest)

    @property
    def count(self) -> int:
        """The number of losses that are known."""
        return sum(int((~np.isnan(row)).sum()) for row in self.losses.values())

    def agrees(self, losses: np.ndarray) -> bool:
        """Return whether the whole model had these losses (n,) on the first windows when it was measured."""
        held = self.losses.get(Removed(), np.empty(0))[: len(losses)]
        return held.shape == losses.shape and np.allclose(held, losses, rtol=0, atol=1e-6)

    def mean(self, removed: Removed) -> float:
        """Return the mean loss without a set, infinity where it overflows."""
        mean = float(self.losses[removed].mean())
        return mean if math.isfinite(mean) else math.inf

    def missing(self, removals: Sequence[Removed], part: slice) -> list[Removed]:
        """Return the sets that have windows of this part to be measured."""
        return [each for each in removals if each not in self.losses or np.isnan(self.losses[each][part]).any()]

    def put(self, removals: Sequence[Removed], part: slice, losses: np.ndarray) -> None:
        """Take the losses (sets, n) of a part of the windows.

        Raises:
            OutputError: the file cannot be written.
        """
        for removed, row in zip(removals, losses, strict=True):
            row = np.where(np.isfinite(row), row, np.inf)  # what is not a number has been measured all the same
            self.losses.setdefault(removed, np.full(self._shape[1], np.nan))[part] = row
        if self._store is not None and time.monotonic() - self._saved >= SAVE_SECONDS:
            self._save(self._store)

    def _save(self, store: Path) -> None:
        removed = np.zeros((len(self.losses), self._shape[0]), dtype=bool)
        for row, layers in zip(removed, self.losses, strict=True):
            row[list(layers)] = True
        with written_file(store) as file:
            np.savez(file, digest=self._digest, removed=removed, losses=np.stack([*self.losses.values()]))
        self._saved = time.monotonic()


def _read_losses(store: Path, digest: str) -> dict[Removed, np.ndarray]:
    """Return the losses in a file of `_Table`, none where it is damaged or of other work."""
    try:
        with store.open("rb") as file, np.load(file) as held:
            if str(held["digest"]) != digest:
                return {}
            sets = [Removed(np.flatnonzero(row).tolist()) for row in held["removed"]]
            return dict(zip(sets, held["losses"], strict=True))
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile):
        note(f"{store} cannot be read: what it held is measured again")
        return {}


def _digest(decoder: Decoder, windows: np.ndarray) -> str:
    """Return what tells this work from another: the windows, (N, T + 1) int64, and the model's configuration."""
    work = hashlib.sha256(windows.astype("<i8").tobytes())
    work.update(f"{windows.shape} {decoder.model.config.to_json_string()}".encode())
    return work.hexdigest()
