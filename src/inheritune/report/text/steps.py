"""What to do next: sentences with commands that work from wherever they are printed."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from inheritune.report.read.models import Model, path_or_id
from inheritune.report.read.runs import Run
from inheritune.report.text import evidence
from inheritune.report.text import format as fmt

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


def after_analysis(model: Model) -> list[Step]:
    """Return the cut that a model's analysis recommends, and how to train from it; nothing without an analysis."""
    record = model.analysis.record if model.analysis else None
    advice = record.recommendation if record else None
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
    changes = [f"reference={name}", f"data.source={text}", f"layers={advice.start}"]
    command = ["inheritune", "run", "heal", *(part for change in changes for part in ("--set", change))]
    purpose = f"Or keep its first {fmt.plural(advice.start, 'layer')} and train them, best on a text of your own"
    return [*steps, Step(purpose, shlex.join([*command, "--out", f"{short}-healed"]))]


def after_run(run: Run) -> list[Step]:
    """Return what to do after a run: more training where it did not match, more windows where that is not clear."""
    record = run.record
    test, windows = record.result.comparison, record.result.evaluation.windows
    steps = [each.steps for each in record.rounds]
    if sum(steps) < evidence.FEW_STEPS or (test is not None and not test.matches and test.ci_low > 0):
        had = f" ({steps[-1]} a round here)" if steps else ""
        return [Step(f"Train longer: raise training.steps{had} in its recipe, and run it into a new folder")]
    if test is not None and (not test.matches or windows < evidence.FEW_WINDOWS):
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
