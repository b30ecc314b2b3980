"""Read finished runs (the record, the logs and the analyses it points to) and analyses that stand alone."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from inheritune import storage
from inheritune.decoder.source import BUNDLED, resolve_model
from inheritune.errors import OutputError, nearest
from inheritune.records.analysis import Recommendation
from inheritune.spectra.folder import SPECTRA, read_analysis, read_maps

SCHEMA = 1
_NEEDED = ("name", "method", "rounds", "result")
_RESULT_NEEDED = ("layers", "parameters", "tokens", "evaluation")


@dataclass(frozen=True)
class Analysis:
    """What `inheritune analyze` wrote about one model.

    Attributes:
        spectra: the content of spectra.json.
        maps: the attention maps of maps.json; empty when there is no such file.
    """

    spectra: dict[str, Any]
    maps: list[dict[str, Any]]

    @property
    def recommendation(self) -> Recommendation | None:
        """What the analysis recommends; None in an older record."""
        held = self.spectra.get("recommendation")
        return None if held is None else Recommendation.model_validate(held)


@dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes:
        path: its folder.
        label: its name on the page, different for each run on it.
        record: the content of record.json.
        metrics: for each round, the logged lines in the order of their steps.
        reference_analysis: the analysis of the reference, or None.
        result_analysis: the analysis of the result, or None.
        losses: loss of each validation window of the result, (N,) float64, or None.
        absent: files the record names that are not on the disk.
        collapse: for each round, the lines of its collapse.jsonl in the order of their steps.
    """

    path: Path
    label: str
    record: dict[str, Any]
    metrics: tuple[list[dict[str, Any]], ...]
    reference_analysis: Analysis | None = None
    result_analysis: Analysis | None = None
    losses: np.ndarray | None = None
    absent: tuple[str, ...] = ()
    collapse: tuple[list[dict[str, Any]], ...] = ()

    @property
    def method(self) -> str:
        """How the result was made, for example `inheritune` or `scratch`."""
        return str(self.record["method"])

    @property
    def rounds(self) -> list[dict[str, Any]]:
        """The rounds of growth; a baseline has one."""
        return list(self.record["rounds"])

    @property
    def result(self) -> dict[str, Any]:
        """The trained model: its size, losses and speed."""
        return dict(self.record["result"])

    @property
    def reference(self) -> dict[str, Any] | None:
        """The model to be matched, or None."""
        return self.record.get("reference")


@dataclass(frozen=True)
class Model:
    """A row of the table and a line in the charts: a reference, the result of a run, or a model analysed alone.

    Attributes:
        label: its name on the page.
        record: the `reference` or `result` part of a run record; empty for an analysis alone.
        analysis: its analysis, or None.
        run: the run that made it; None for a reference or an analysis alone.
        name: what a command takes for it: a folder or hub id, or None where the record does not say.
    """

    label: str
    record: dict[str, Any]
    analysis: Analysis | None
    run: Run | None
    name: str | None = None


@dataclass(frozen=True)
class Sources:
    """What a page is made of.

    Attributes:
        runs: finished runs.
        studies: models that were analysed alone.
    """

    runs: tuple[Run, ...]
    studies: tuple[Model, ...] = ()

    @property
    def shown(self) -> list[Model]:
        """All models on the page: references, results, then analyses alone."""
        return [*models(self.runs), *self.studies]


def load(paths: Sequence[Path]) -> Sources:
    """Read each run and each analysis folder once, and give each a label of its own.

    Args:
        paths: folders of finished runs (with a record.json) or analyses (with a spectra.json).

    Raises:
        OutputError: nothing was named, a folder is neither, or one of them cannot be read.
    """
    folders = list(dict.fromkeys(Path(path).expanduser().resolve() for path in paths))
    if not folders:
        raise OutputError("nothing to report on: pass one or more folders that hold a record.json or a spectra.json")
    alone = [folder for folder in folders if _is_study(folder)]
    rest = [folder for folder in folders if folder not in alone]
    runs = tuple(load_runs(rest)) if rest else ()
    return Sources(runs, tuple(_studies(alone, {model.label for model in models(runs)})))


def _is_study(folder: Path) -> bool:
    return not (folder / storage.RECORD).is_file() and (folder / SPECTRA).is_file()


def _studies(folders: Sequence[Path], taken: set[str]) -> list[Model]:
    """Read analyses that stand alone; one whose name is taken is told apart by its folder, then by a number."""
    found: list[Model] = []
    for folder in folders:
        analysis = _analysis(folder)
        name = str(analysis.spectra.get("model") or folder.name)
        short = (
            BUNDLED
            if name == resolve_model(BUNDLED)
            else "/".join(name.replace("\\", "/").rstrip("/").split("/")[-2:]).lstrip("/")
        )
        label, number = short if short not in taken else f"{short} ({folder.name})", 2
        while label in taken:
            label, number = f"{short} ({folder.name}, {number})", number + 1
        taken.add(label)
        found.append(Model(label, {}, analysis, None, name))
    return found


def load_runs(paths: Sequence[Path]) -> list[Run]:
    """Read each run once, and give each a label of its own.

    Raises:
        OutputError: no run was named, or one of them is not finished, not a run, or cannot be read.
    """
    folders = list(dict.fromkeys(Path(path).expanduser().resolve() for path in paths))
    if not folders:
        raise OutputError("no run to report on: pass one or more folders that hold a record.json")
    found = [_read_record(folder) for folder in folders]
    names = [str(record["name"]) for record in found]
    labels = [_label(names, folders, i) for i in range(len(folders))]
    return [_load(*parts) for parts in zip(folders, labels, found, strict=True)]


def _label(names: list[str], folders: list[Path], i: int) -> str:
    """Return the run's name; its folder as well where another run or reference has the same name."""
    if names.count(names[i]) == 1:
        return names[i]
    same_folder = [folder.name for folder in folders].count(folders[i].name) > 1
    return f"{names[i]} ({folders[i] if same_folder else folders[i].name})"


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / storage.RECORD
    if folder.is_file():
        raise OutputError(f"{folder} is a file: expected its folder, {folder.parent}")
    if not folder.exists():
        beside = [each.name for each in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise OutputError(f"no folder {folder}: expected a finished run or an analysis{nearest(folder.name, beside)}")
    if not path.is_file():
        raise OutputError(
            f"{folder} is neither a finished run nor an analysis: it has no {storage.RECORD} and no {SPECTRA}"
        )
    record = storage.read_json(path)
    if not isinstance(record, dict) or record.get("kind") != "run":
        kind = record.get("kind") if isinstance(record, dict) else None
        raise OutputError(f"{folder} is not finished or not a run: its record is of kind {kind!r}, expected 'run'")
    if record.get("schema") != SCHEMA:
        raise OutputError(f"{path} has schema {record.get('schema')!r}: this version reads schema {SCHEMA}")
    missing = [key for key in _NEEDED if record.get(key) is None]
    missing += [f"result.{key}" for key in _RESULT_NEEDED if key not in (record.get("result") or {})]
    if missing:
        raise OutputError(f"{path} lacks {', '.join(missing)}: expected a record written by inheritune run")
    return record


def _load(folder: Path, label: str, record: dict[str, Any]) -> Run:
    absent: list[str] = []
    metrics = tuple(_read_lines(folder, turn.get("metrics"), absent) for turn in record["rounds"])
    collapse = tuple(_read_lines(folder, turn.get("collapse"), absent) for turn in record["rounds"])
    reference = (record.get("reference") or {}).get("analysis")
    return Run(
        path=folder,
        label=label,
        record=record,
        metrics=metrics,
        reference_analysis=_read_analysis(folder, reference, absent),
        result_analysis=_read_analysis(folder, record["result"].get("analysis"), absent),
        losses=_read_losses(folder, record["result"].get("losses"), absent),
        absent=tuple(absent),
        collapse=collapse,
    )


def _read_losses(folder: Path, name: str | None, absent: list[str]) -> np.ndarray | None:
    if name is None:
        return None
    path = folder / name
    if not path.is_file():
        absent.append(name)
        return None
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise OutputError(f"cannot read {path} as the losses of validation windows: {error}") from error


def _read_lines(folder: Path, name: str | None, absent: list[str]) -> list[dict[str, Any]]:
    """Return a round's logged lines of one file; where a resumed run logged a step twice, the later line counts."""
    if name is None:
        return []
    path = folder / name
    if not path.is_file():
        absent.append(name)
        return []
    lines: dict[int, dict[str, Any]] = {}
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
            lines[int(line["step"])] = line
        except (ValueError, KeyError, TypeError) as error:
            raise OutputError(f"{path} line {number} is not a logged step: {error}") from error
    return [lines[step] for step in sorted(lines)]


def _read_analysis(folder: Path, name: str | None, absent: list[str]) -> Analysis | None:
    if name is None:
        return None
    if not (folder / name / SPECTRA).is_file():
        absent.append(f"{name}/{SPECTRA}")
        return None
    return _analysis(folder / name)


def _analysis(folder: Path) -> Analysis:
    """Read an analysis folder; maps.json may be missing."""
    return Analysis(read_analysis(folder).as_json(), [drawn.as_json() for drawn in read_maps(folder)])


def primary(runs: Sequence[Run]) -> Run:
    """Return the run the verdict is about: the first made by Inheritune, else the first."""
    return next((run for run in runs if run.method == "inheritune"), runs[0])


def reference_model(run: Run) -> Model | None:
    """Return the reference of one run as a model of the page."""
    if run.reference is None:
        return None
    name = run.reference.get("name") or run.reference.get("model") or "reference"
    return Model(str(name), run.reference, run.reference_analysis, None, run.reference.get("model"))


def models(runs: Sequence[Run]) -> list[Model]:
    """Return all models on the page: each different reference once, then the result of each run.

    Runs that were compared with one reference share its row, and what one of their records does not say about it
    (its speed, sample or analysis) is taken from the next that does.
    """
    merged: dict[str, Model] = {}
    for run in runs:
        model = reference_model(run)
        if model is not None:
            key = _identity(model)
            merged[key] = _merge(merged[key], model) if key in merged else model
    results = [Model(run.label, run.result, run.result_analysis, run, _result_model(run)) for run in runs]
    return [*_distinct(list(merged.values()), {run.label for run in runs}), *results]


def _result_model(run: Run) -> str | None:
    """Return the folder of a run's result, which the record names within the run's own."""
    name = run.result.get("model")
    return None if name is None else str(run.path / str(name))


def same_reference(one: Run, other: Run) -> bool:
    """Tell whether two runs were measured against one reference on the same windows."""
    a, b = reference_model(one), reference_model(other)
    return a is not None and b is not None and _identity(a) == _identity(b)


def _identity(model: Model) -> str:
    """Return what makes two records speak of one reference: its name, size and loss to the last bit."""
    evaluation = model.record.get("evaluation") or {}
    size = [model.record.get("layers"), model.record.get("parameters")]
    return json.dumps([model.label, *size, evaluation.get("loss"), evaluation.get("windows")])


def _merge(first: Model, second: Model) -> Model:
    known = {key: value for key, value in first.record.items() if value is not None}
    return Model(first.label, second.record | known, first.analysis or second.analysis, None, first.name or second.name)


def _distinct(references: list[Model], taken: set[str]) -> list[Model]:
    """Number references whose name is not theirs alone, so that no two lines of a chart share a label."""
    named: list[Model] = []
    for model in references:
        label, number = model.label, 2
        while label in taken:
            label, number = f"{model.label} (reference{'' if number == 2 else f' {number - 1}'})", number + 1
        taken.add(label)
        named.append(Model(label, model.record, model.analysis, None, model.name))
    return named


def finite(value: Any) -> bool:
    """Tell whether a logged value is a number that can be drawn (a diverged run logs NaN)."""
    return isinstance(value, int | float) and math.isfinite(value)
