"""What to do next: sentences with commands that work from wherever they are printed."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from inheritune.report.read.models import path_or_id
from inheritune.report.read.runs import Run
from inheritune.report.text import evidence
from inheritune.report.text import format as fmt

_MORE = 4
"""Four times as many windows or steps: half the standard error."""


@dataclass(frozen=True)
class Step:
    """One thing to do.

    Attributes:
        purpose: what it is for, a sentence without its full stop.
        command: what to run, quoted for a shell; None where there is no one command.
    """

    purpose: str
    command: str | None = None

    def __str__(self) -> str:
        return self.purpose if self.command is None else f"{self.purpose}: {self.command}"


def after_analysis(label: str, name: str | None, depth: int, start: int, keep: Sequence[int]) -> list[Step]:
    """Return the cut that an analysis recommends, and how to train from it.

    Args:
        label: the model's name on the page, which the new folder is called by.
        name: what a command takes for the model, or None.
        depth: its number of layers.
        start: with how many first layers to start Inheritune.
        keep: the layers that stay when it is cut, ascending.
    """
    model, steps = name or "MODEL", []
    if 0 < len(keep) < depth:
        # A list, since the end of a range is excluded in a command and included on the page.
        chosen = str(len(keep)) if list(keep) == list(range(len(keep))) else ",".join(map(str, keep))
        out = f"{Path(label).name or 'model'}-{len(keep)}-layers"
        steps.append(Step("Cut it", shlex.join(["inheritune", "inherit", model, "--layers", chosen, "--out", out])))
    changes = ["--set", f"reference={model}", "--set", f"layers={start}"]
    steps.append(
        Step(
            f"Or train from its first {fmt.plural(start, 'layer')}, with a recipe that names your text",
            shlex.join(["inheritune", "run", "RECIPE.yaml", *changes]),
        )
    )
    return steps


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
