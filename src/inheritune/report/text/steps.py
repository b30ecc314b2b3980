"""How little the evidence is, with the thresholds for it, and what to do next: commands that work from anywhere."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from inheritune.evaluation.paired import few_documents
from inheritune.layers import plural
from inheritune.report.read.folders import Analysis, Run
from inheritune.report.read.models import Model, path_or_id

FEW_WINDOWS = 100
"""Of validation; the paired t test over fewer says little of other text."""
FEW_STEPS = 100
"""Of training, all rounds together; a learning rate has hardly left its warm-up by then."""
FEW_SEQUENCES = 30
"""Of an analysis; the mean rank of a head over fewer depends on the text."""
FEW_LAYERS = 30
"""Of a correlation over the layers of one model."""
_TEXT = "TEXT.txt"
"""What a command names where the record does not say which text was used."""
_MORE = 4
"""Four times as many windows or steps: half the standard error."""


@dataclass(frozen=True)
class Step:
    """One thing to do."""

    purpose: str
    """What it is for, a sentence without its full stop."""
    command: str | None = None
    """What to run, quoted for a shell; None where there is no one command."""

    def __str__(self) -> str:
        return self.purpose if self.command is None else f"{self.purpose}: {self.command}"


def weak_runs(main: Run, others: Sequence[Run]) -> list[str]:
    """Say how little the verdict on a run rests on: few windows, few steps, one seed; nothing that is not so."""
    record = main.record
    steps = sum(each.steps for each in record.rounds)
    few = _few(record.result.evaluation.windows, FEW_WINDOWS, "validation window")
    few += _few(steps, FEW_STEPS, "training step")
    if (test := record.result.comparison) and (documents := few_documents(test.clusters, test.freedom)):
        few.append(documents)
    notes = [f"Weak evidence: {' and '.join(few)}."] if few else []
    kind = record.method, record.result.layers
    seeds = {run.record.seed for run in others if (run.record.method, run.record.result.layers) == kind}
    if seeds <= {record.seed}:
        notes.append(f"One seed ({record.seed}): how far another seed's result would differ is not known.")
    return notes


def weak_analysis(analysis: Analysis) -> list[str]:
    """Say that an analysis rests on few sequences; nothing otherwise."""
    few = _few(analysis.record.sequences, FEW_SEQUENCES, "analysed sequence")
    return [f"Weak evidence: {few[0]}, so other text may give other ranks."] if few else []


def _few(number: int, enough: int, noun: str) -> list[str]:
    return [f"{plural(number, noun)} (fewer than {enough})"] if number < enough else []


def after_analysis(model: Model) -> list[Step]:
    """Return the cut that a model's analysis recommends, and how to train from it; nothing without an analysis."""
    record, advice = (model.analysis.record, model.analysis.advice) if model.analysis else (None, None)
    if record is None or advice is None:
        return []
    # In version 0.1 the analysis that a run made has a label, which no command takes.
    named = model.name is not None and not model.name.endswith((": reference", ": result"))
    name, short, steps = (model.name if named else None) or "MODEL", Path(model.label).name or "model", []
    if advice.cut:
        # A list, since the end of a range is excluded in a command and included on the page.
        keep, prefix = advice.keep, list(advice.keep) == list(range(len(advice.keep)))
        layers = str(len(keep)) if prefix else ",".join(map(str, keep))
        command = ["inheritune", "inherit", name, "--layers", layers, "--out", f"{short}-{len(keep)}-layers"]
        steps.append(Step("Cut it", shlex.join(command)))
    text = path_or_id(record.data.source or _TEXT) if record.data else _TEXT
    kept = f"[{','.join(map(str, advice.keep))}]" if advice.measured else str(advice.start)
    changes = [f"reference={name}", f"data.source={text}", f"layers={kept}"]
    command = ["inheritune", "run", "heal", *(part for change in changes for part in ("--set", change))]
    which = "these layers" if advice.measured else f"its first {plural(advice.start, 'layer')}"
    purpose = f"Or keep {which} and train them, best on a text of your own"
    return [*steps, Step(purpose, shlex.join([*command, "--out", f"{short}-healed"]))]


def after_run(run: Run) -> list[Step]:
    """Return what to do after a run: more training where it did not match, more windows where that is not clear."""
    record = run.record
    test, windows = record.result.comparison, record.result.evaluation.windows
    steps = [each.steps for each in record.rounds]
    if sum(steps) < FEW_STEPS or (test is not None and not test.matches and test.ci_low > 0):
        had = f" ({steps[-1]} a round here)" if steps else ""
        return [Step(f"Train longer: raise training.steps{had} in its recipe, and run it into a new folder")]
    if test is not None and (not test.matches or windows < FEW_WINDOWS):
        return _evaluate(run, f"Compare on {_MORE} times as many windows", "--windows", str(_MORE * windows))
    return _evaluate(run, "Measure its loss and speed again on this machine", "--speed")


def _evaluate(run: Run, purpose: str, *options: str) -> list[Step]:
    """Return the evaluation of a run's result against its reference, on the text of the run."""
    result, reference, data = run.record.result, run.record.reference, run.record.data
    if result.model is None or data is None:
        return []
    command = ["inheritune", "evaluate", str(run.path / result.model)]
    command += ["--against", path_or_id(reference.model)] if reference else []
    return [Step(purpose, shlex.join([*command, "--data", path_or_id(data.source), *options]))]
