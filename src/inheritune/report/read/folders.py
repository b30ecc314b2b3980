"""The folders of analyses and of finished runs: the record, and the logs, analyses and losses that it names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from pydantic import ValidationError

from inheritune.errors import OutputError, nearest_path
from inheritune.records.analysis import AnalysisRecord, AttentionMap, LayerMeasures, Mask, Recommendation
from inheritune.records.base import Record, first_problem, read_record
from inheritune.records.prices import PricesRecord
from inheritune.records.runs import FrontierRecord, QuickstartRecord, ReproductionRecord, RunRecord
from inheritune.spectra.advice import recommend_by_price
from inheritune.spectra.folder import PRICES, SPECTRA, read_analysis, read_maps
from inheritune.storage import FRONTIER, RECORD, read_identity, read_json, user_path


@dataclass(frozen=True)
class Analysis:
    """The analysis of one model.

    Attributes:
        record: the content of spectra.json.
        maps: the attention maps of maps.json; none where there is no such file.
        prices: the content of prices.json; None where the layers were not left out.
    """

    record: AnalysisRecord
    maps: tuple[AttentionMap, ...] = ()
    prices: PricesRecord | None = None

    @property
    def advice(self) -> Recommendation | None:
        """What is recommended: by what the layers cost, where that was measured."""
        return recommend_by_price(self.prices) if self.prices else self.record.recommendation

    @property
    def masks(self) -> list[Mask]:
        """The masks it was made with, `causal` first."""
        return sorted(self.record.masks)

    @property
    def depth(self) -> int:
        """The number of layers of the model; of an older record, up to the last that was analysed."""
        return self.record.depth or 1 + self.record.layers[-1].index

    def under(self, mask: Mask) -> list[tuple[int, LayerMeasures]]:
        """Return the index and the measures of each layer that has attention; nothing for a mask it was not made with.

        The lists of `LayerMeasures` have an entry for each head.
        """
        return [(layer.index, part) for layer in self.record.layers if (part := layer[mask]) is not None]

    def lazy_layers(self, mask: Mask) -> list[int]:
        """Return the lazy layers (MaxRank = 1, Def. G.1 of the paper), numbered from 0."""
        return [index for index, part in self.under(mask) if part.lazy]


def load_analysis(folder: Path, measured: Path | None = None) -> Analysis:
    """Read the folder of an analysis; `measured` is that of its prices, where they are in another.

    Raises:
        OutputError: a file is damaged, or of a later version, or spectra.json is missing.
    """
    path = (measured or folder) / PRICES
    prices = read_record(path, PricesRecord) if path.is_file() else None
    return Analysis(read_analysis(folder), read_maps(folder), prices)


class Step(Record):
    """What every line has; a number that was not finite when it was logged reads as None."""

    step: int
    """Of the round, counted from 0."""
    tokens: int
    """That the round had been trained on."""


class LoggedStep(Step):
    """A line of `metrics.jsonl`, in JSON; losses in nats per token."""

    loss: float | None = None
    valid_loss: float | None = None


class WatchedMask(Record):
    """The attention of each watched layer under one mask."""

    max_rank: tuple[float | None, ...]
    collapsed: tuple[float | None, ...]
    """The share of the layer's heads, 0 to 1."""


class WatchedGradients(Record):
    """Frobenius norms of each watched layer's query and key gradients."""

    query: tuple[float | None, ...]
    key: tuple[float | None, ...]


class WatchedStep(Step):
    """A line of `collapse.jsonl`, in JSON; each list has an entry for each of `layers`."""

    layers: tuple[int, ...]
    causal: WatchedMask | None = None
    full: WatchedMask | None = None
    gradients: WatchedGradients | None = None


AnyStep = TypeVar("AnyStep", bound=Step)


@dataclass(frozen=True)
class Run:
    """One finished run."""

    path: Path
    """Its folder."""
    label: str
    """Its name on the page, with its folder where another run has the same name."""
    record: RunRecord
    metrics: tuple[list[LoggedStep], ...]
    """For each round, the logged steps in their order."""
    collapse: tuple[list[WatchedStep], ...] = ()
    """For each round, the watched steps in their order."""
    reference_analysis: Analysis | None = None
    result_analysis: Analysis | None = None
    losses: np.ndarray | None = None
    """Loss of each validation window of the result, nats per token, (N,) float64."""
    documents: np.ndarray | None = None
    """The first and the last document of each of these windows, (N, 2) int64; None where not kept (to version 0.2)."""
    absent: tuple[str, ...] = ()
    """Files the record names that are not on the disk."""


def unique_folders(paths: Sequence[str | Path] | str | Path) -> list[Path]:
    """Return each folder once, as an absolute path; the folders of its runs for a quickstart, a frontier or a table.

    Raises:
        OutputError: none was named.
    """
    if not paths:
        raise OutputError(f"nothing to report on: pass one or more folders that hold a {RECORD} or a {SPECTRA}")
    named = [paths] if isinstance(paths, str | Path) else paths
    folders = [user_path(path).resolve() for path in named]
    return list(dict.fromkeys(each for folder in folders for each in _runs_of(folder)))


def frontiers_of(paths: Sequence[str | Path] | str | Path) -> list[tuple[Path, FrontierRecord]]:
    """Return the frontiers among these folders, each once with its folder.

    Raises:
        OutputError: a record is damaged.
    """
    named = [paths] if isinstance(paths, str | Path) else paths
    folders = dict.fromkeys(user_path(path).resolve() for path in named)
    return [(each, read_record(each / FRONTIER, FrontierRecord)) for each in folders if (each / FRONTIER).is_file()]


def _runs_of(folder: Path) -> list[Path]:
    if (folder / FRONTIER).is_file():
        frontier = read_record(folder / FRONTIER, FrontierRecord)
        return [] if frontier.shipped else [folder / point.run for point in frontier.points]
    path = folder / RECORD
    held = read_json(path) if path.is_file() else None
    kind = held.get("kind") if isinstance(held, dict) else None
    if kind == QuickstartRecord.KIND:
        return [folder / name for name in read_record(path, QuickstartRecord).runs]
    if kind == ReproductionRecord.KIND:
        return [folder / name for name in read_record(path, ReproductionRecord).ours]
    return [folder]


def load_runs(paths: Sequence[Path]) -> list[Run]:
    """Read each run once, and give each a label of its own.

    Raises:
        OutputError: no run was named, or one of them is not finished, not a run, or cannot be read.
    """
    folders = unique_folders(paths)
    records = [_read(folder) for folder in folders]
    names, places = [record.name for record in records], [folder.name for folder in folders]
    labels = [
        name if names.count(name) == 1 else f"{name} ({folder.name if places.count(folder.name) == 1 else folder})"
        for name, folder in zip(names, folders, strict=True)
    ]
    return [_load(*each) for each in zip(folders, labels, records, strict=True)]


def _read(folder: Path) -> RunRecord:
    if folder.is_file():
        raise OutputError(f"{folder} is a file: expected its folder, {folder.parent}")
    if not folder.exists():
        raise OutputError(f"no folder {folder}: expected a finished run or an analysis{nearest_path(folder)}")
    if not (folder / RECORD).is_file():
        command = (read_identity(folder) or {}).get("kind")
        if command in ("run", "frontier", "quickstart", "reproduce"):
            raise OutputError(
                f"{folder} is a {command} that is not finished: give the same inheritune {command} command again"
            )
        raise OutputError(f"{folder} is neither a finished run nor an analysis: it has no {RECORD} and no {SPECTRA}")
    return read_record(folder / RECORD, RunRecord)


def _load(folder: Path, label: str, record: RunRecord) -> Run:
    absent: list[str] = []

    def there(name: str | None, file: str = "") -> Path | None:
        """Return the place of a file that the record names; None, and a note, where it is not on the disk."""
        path = None if name is None else folder / name / file
        if path is None or path.is_file():
            return path
        absent.append(str(path.relative_to(folder)))
        return None

    def log(name: str | None, kind: type[AnyStep]) -> list[AnyStep]:
        return [] if (path := there(name)) is None else read_log(path, kind)

    def analysis(name: str | None, measured: Path | None = None) -> Analysis | None:
        return None if (path := there(name, SPECTRA)) is None else load_analysis(path.parent, measured)

    def windows(name: str | None) -> np.ndarray | None:
        return None if (path := there(name)) is None else _read_windows(path)

    return Run(
        path=folder,
        label=label,
        record=record,
        metrics=tuple(log(each.metrics, LoggedStep) for each in record.rounds),
        collapse=tuple(log(each.collapse, WatchedStep) for each in record.rounds),
        reference_analysis=analysis(record.reference.analysis if record.reference else None, folder),
        result_analysis=analysis(record.result.analysis),
        losses=windows(record.result.losses),
        documents=windows(record.data.documents if record.data else None),
        absent=tuple(absent),
    )


def read_log(path: Path, kind: type[AnyStep]) -> list[AnyStep]:
    """Return the lines of a log in the order of their steps; of a step that was logged twice, the later line.

    Raises:
        OutputError: the file cannot be read, or a line is not a step.
    """
    try:
        texts = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error.strerror or error}") from error
    steps: dict[int, AnyStep] = {}
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            continue
        try:
            line = kind.model_validate(json.loads(text, parse_constant=lambda _: None))
        except ValueError as error:
            cause = first_problem(error) if isinstance(error, ValidationError) else error
            raise OutputError(f"{path} line {number} is not a logged step: {cause}") from error
        steps[line.step] = line
    return [steps[step] for step in sorted(steps)]


def _read_windows(path: Path) -> np.ndarray:
    """Read what there is of each of N validation windows: its loss, or the numbers of its documents."""
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise OutputError(f"cannot read {path} as numbers of validation windows: {error}") from error
