"""The models of a page: each reference and each analysed model once, under whatever path a record knows it.

Two records speak of one model when they hold one identity (a digest of the model's files). Where one of them has none,
as those of version 0.1, the paths are compared.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from inheritune.decoder.source import BUNDLED, resolve_model
from inheritune.records.evaluation import Comparison
from inheritune.records.runs import FrontierRecord, ReferenceRecord, ResultRecord
from inheritune.report.read.folders import Analysis, Run, frontiers_of, load_analysis, load_runs, unique_folders
from inheritune.spectra.folder import SPECTRA
from inheritune.storage import RECORD


@dataclass(frozen=True)
class Model:
    """A row of the table and a line in the charts: a reference, the result of a run, or a model analysed alone."""

    label: str
    """Its name on the page."""
    record: ReferenceRecord | ResultRecord | None
    """What a run's record says of it; None for an analysis alone."""
    analysis: Analysis | None
    run: Run | None = None
    """The run that made it; None for a reference or an analysis alone."""
    name: str | None = None
    """What a command takes for it: a folder or hub id; None where the record does not say."""

    @property
    def comparison(self) -> Comparison | None:
        """The paired test against its reference; None for a reference and for what was not tested."""
        return self.record.comparison if isinstance(self.record, ResultRecord) else None


@dataclass(frozen=True)
class Sources:
    """What a page is made of."""

    runs: tuple[Run, ...]
    studies: tuple[Model, ...] = ()
    """Models that were analysed alone and are neither the reference nor the result of a run."""
    frontiers: tuple[tuple[Path, FrontierRecord], ...] = ()
    """Each with its folder; the runs of its depths are among `runs`."""

    @property
    def shown(self) -> list[Model]:
        """All models on the page: references, results, then analyses alone."""
        return [*models(self.runs), *self.studies]

    @property
    def analysed(self) -> dict[str, Analysis]:
        """The analyses of those that were analysed, by their labels."""
        return {model.label: model.analysis for model in self.shown if model.analysis is not None}


def load(paths: Sequence[str | Path] | str | Path) -> Sources:
    """Read each run and each analysis folder once, and give each model a label of its own.

    An analysis of the reference or the result of a run becomes that model's, in the place of the run's own.

    Args:
        paths: as `write_report` takes them.

    Raises:
        OutputError: nothing was named, a folder is neither a run nor an analysis, or one of them cannot be read.
    """
    folders = unique_folders(paths)
    alone = [folder for folder in folders if not (folder / RECORD).is_file() and (folder / SPECTRA).is_file()]
    analyses = {folder: load_analysis(folder) for folder in alone}
    rest = [folder for folder in folders if folder not in analyses]
    runs, left = _assign(load_runs(rest) if rest else [], analyses)
    studies, taken = [], {model.label for model in models(runs)}
    for folder, analysis in left.items():
        name = path_or_id(analysis.record.model or folder.name)
        short = "/".join(name.replace("\\", "/").rstrip("/").split("/")[-2:]).lstrip("/")
        studies.append(Model(_distinct(short, folder.name, taken), None, analysis, name=name))
    return Sources(tuple(runs), tuple(studies), tuple(frontiers_of(paths)))


def _assign(runs: list[Run], analyses: dict[Path, Analysis]) -> tuple[list[Run], dict[Path, Analysis]]:
    """Give runs the analyses of their references and results; return them, and the analyses of other models.

    Of two analyses of one model, the second stands alone.
    """
    left: dict[Path, Analysis] = {}
    given: set[tuple[str, int]] = set()
    for folder, analysis in analyses.items():
        before = len(given)
        for i, run in enumerate(runs):
            if ("reference", i) not in given and _is_reference(run, folder, analysis):
                runs[i] = replace(runs[i], reference_analysis=analysis)
                given.add(("reference", i))
            elif ("result", i) not in given and _is_result(run, folder, analysis):
                runs[i] = replace(runs[i], result_analysis=analysis)
                given.add(("result", i))
        if len(given) == before:
            left[folder] = analysis
    return runs, left


def _is_reference(run: Run, folder: Path, analysis: Analysis) -> bool:
    reference, held = run.record.reference, analysis.record
    if reference is None:
        return False
    own = reference.analysis is not None and folder == run.path / reference.analysis
    return own or _is_same(reference.model, reference.identity, held.model, held.identity)


def _is_result(run: Run, folder: Path, analysis: Analysis) -> bool:
    """Tell whether an analysis is the result's, which a command takes by its own folder and by the run's."""
    own = run.record.result.analysis
    if own is not None and folder == run.path / own:
        return True
    return any(_is_same(name, None, analysis.record.model, None) for name in (str(run.path), _result_folder(run)))


def _is_same(name: str | None, identity: str | None, other: str | None, other_identity: str | None) -> bool:
    if identity is not None and other_identity is not None:
        return identity == other_identity
    return name is not None and other is not None and path_or_id(name) == path_or_id(other)


def path_or_id(name: str) -> str:
    """Return what a command takes for a model from wherever it is run: `stdlib`, an absolute path, or a hub id."""
    place = Path(resolve_model(name) if name in BUNDLED else name).expanduser()
    if not os.path.exists(place):  # noqa: PTH110 - Path.exists raises for a name that is too long for a file
        return name
    ours = {Path(resolve_model(each)).resolve(): each for each in BUNDLED}
    return ours.get(place.resolve(), str(place.resolve()))


def _distinct(name: str, mark: str, taken: set[str]) -> str:
    """Return a label that no other line of a chart has: the name, with a mark and then a number where it is taken."""
    label, number = name if name not in taken else f"{name} ({mark})", 2
    while label in taken:
        label, number = f"{name} ({mark}, {number})", number + 1
    taken.add(label)
    return label


def models(runs: Sequence[Run]) -> list[Model]:
    """Return all models of runs: each different reference once, then the result of each run.

    Runs that were compared with one reference share its row, and what one of their records does not say about it
    (its speed, sample or analysis) is taken from the next that does.
    """
    merged: list[tuple[ReferenceRecord, Analysis | None]] = []
    for run in runs:
        record, analysis = run.record.reference, run.reference_analysis
        if record is None:
            continue
        for i, (known, held) in enumerate(merged):
            if is_same_reference(known, record):
                said = {key: value for key, value in known if value is not None}
                merged[i] = record.model_copy(update=said), held or analysis
                break
        else:
            merged.append((record, analysis))
    taken = {run.label for run in runs}
    found = []
    for record, analysis in merged:
        label = _distinct(record.name or record.model, "reference", taken)
        found.append(Model(label, record, analysis, name=path_or_id(record.model)))
    return found + [Model(run.label, run.record.result, run.result_analysis, run, _result_folder(run)) for run in runs]


def _result_folder(run: Run) -> str | None:
    """Return the folder of a run's result, which the record names within the run's own."""
    return None if run.record.result.model is None else str(run.path / run.record.result.model)


def is_same_reference(one: ReferenceRecord | None, other: ReferenceRecord | None) -> bool:
    """Tell whether two runs were measured against one reference with one result: its size, and its loss to the bit."""
    if one is None or other is None:
        return False
    sizes = [(each.layers, each.parameters, each.evaluation.loss, each.evaluation.windows) for each in (one, other)]
    named = (one.name or one.model) == (other.name or other.model) and None in (one.identity, other.identity)
    return sizes[0] == sizes[1] and (named or _is_same(one.model, one.identity, other.model, other.identity))
