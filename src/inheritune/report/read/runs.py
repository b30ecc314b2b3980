"""Finished runs: the record, and the logs, analyses and losses that it names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from inheritune.errors import OutputError, nearest
from inheritune.records.base import read_record
from inheritune.records.runs import RunRecord
from inheritune.report.read.analyses import Analysis, load_analysis
from inheritune.report.read.logs import AnyStep, LoggedStep, WatchedStep, read_log
from inheritune.spectra.folder import SPECTRA
from inheritune.storage import RECORD


@dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes:
        path: its folder.
        label: its name on the page, different for each run on it.
        record: the content of record.json.
        metrics: for each round, the logged steps in their order.
        collapse: for each round, the watched steps in their order.
        reference_analysis: the analysis of the reference, or None.
        result_analysis: the analysis of the result, or None.
        losses: loss of each validation window of the result, nats per token, (N,) float64, or None.
        absent: files the record names that are not on the disk.
    """

    path: Path
    label: str
    record: RunRecord
    metrics: tuple[list[LoggedStep], ...]
    collapse: tuple[list[WatchedStep], ...] = ()
    reference_analysis: Analysis | None = None
    result_analysis: Analysis | None = None
    losses: np.ndarray | None = None
    absent: tuple[str, ...] = ()


def unique_folders(paths: Sequence[Path]) -> list[Path]:
    """Return each folder once, as an absolute path.

    Raises:
        OutputError: none was named.
    """
    if not paths:
        raise OutputError(f"nothing to report on: pass one or more folders that hold a {RECORD} or a {SPECTRA}")
    return list(dict.fromkeys(Path(path).expanduser().resolve() for path in paths))


def load_runs(paths: Sequence[Path]) -> list[Run]:
    """Read each run once, and give each a label of its own.

    Raises:
        OutputError: no run was named, or one of them is not finished, not a run, or cannot be read.
    """
    folders = unique_folders(paths)
    records = [_read(folder) for folder in folders]
    names = [record.name for record in records]
    return [_load(folder, _label(names, folders, i), records[i]) for i, folder in enumerate(folders)]


def _label(names: list[str], folders: list[Path], i: int) -> str:
    """Return the run's name; its folder as well where another run has the same name."""
    if names.count(names[i]) == 1:
        return names[i]
    same_folder = [folder.name for folder in folders].count(folders[i].name) > 1
    return f"{names[i]} ({folders[i] if same_folder else folders[i].name})"


def _read(folder: Path) -> RunRecord:
    if folder.is_file():
        raise OutputError(f"{folder} is a file: expected its folder, {folder.parent}")
    if not folder.exists():
        beside = [each.name for each in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise OutputError(f"no folder {folder}: expected a finished run or an analysis{nearest(folder.name, beside)}")
    if not (folder / RECORD).is_file():
        raise OutputError(f"{folder} is neither a finished run nor an analysis: it has no {RECORD} and no {SPECTRA}")
    return read_record(folder / RECORD, RunRecord)


def _load(folder: Path, label: str, record: RunRecord) -> Run:
    absent: list[str] = []

    def there(name: str | None, file: str = "") -> Path | None:
        """Return the place of a file that the record names; None, and a note, where it is not on the disk."""
        if name is None:
            return None
        path = folder / name / file
        if not path.is_file():
            absent.append(f"{name}/{file}" if file else name)
            return None
        return path

    def log(name: str | None, kind: type[AnyStep]) -> list[AnyStep]:
        path = there(name)
        return [] if path is None else read_log(path, kind)

    def analysis(name: str | None) -> Analysis | None:
        path = there(name, SPECTRA)
        return None if path is None else load_analysis(path.parent)

    return Run(
        path=folder,
        label=label,
        record=record,
        metrics=tuple(log(each.metrics, LoggedStep) for each in record.rounds),
        collapse=tuple(log(each.collapse, WatchedStep) for each in record.rounds),
        reference_analysis=analysis(record.reference.analysis if record.reference else None),
        result_analysis=analysis(record.result.analysis),
        losses=_read_losses(there(record.result.losses)),
        absent=tuple(absent),
    )


def _read_losses(path: Path | None) -> np.ndarray | None:
    """Read the losses of validation windows, (N,) float64."""
    if path is None:
        return None
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise OutputError(f"cannot read {path} as the losses of validation windows: {error}") from error
