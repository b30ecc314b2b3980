"""When evidence is weak: one place for the thresholds, and the words for what lies below them."""

from __future__ import annotations

from collections.abc import Sequence

from inheritune.report.read.analyses import Analysis
from inheritune.report.read.runs import Run
from inheritune.report.text import format as fmt

FEW_WINDOWS = 100
"""Of validation; the paired t test over fewer says little of other text."""
FEW_STEPS = 100
"""Of training, all rounds together; a learning rate has hardly left its warm-up by then."""
FEW_SEQUENCES = 30
"""Of an analysis; the mean rank of a head over fewer depends on the text."""
FEW_LAYERS = 30
"""Of a correlation over the layers of one model."""


def of_runs(main: Run, others: Sequence[Run]) -> list[str]:
    """Say how little the verdict on a run rests on: few windows, few steps, one seed; nothing that is not so."""
    record = main.record
    steps = sum(each.steps for each in record.rounds)
    few = _few(record.result.evaluation.windows, FEW_WINDOWS, "validation window")
    few += _few(steps, FEW_STEPS, "training step")
    notes = [f"Weak evidence: {' and '.join(few)}."] if few else []
    kind = record.method, record.result.layers
    seeds = {run.record.seed for run in others if (run.record.method, run.record.result.layers) == kind}
    if seeds <= {record.seed}:
        notes.append(f"One seed ({record.seed}): how far another seed's result would differ is not known.")
    return notes


def of_analysis(analysis: Analysis) -> list[str]:
    """Say that an analysis rests on few sequences; nothing otherwise."""
    few = _few(analysis.record.sequences, FEW_SEQUENCES, "analysed sequence")
    return [f"Weak evidence: {few[0]}, so other text may give other ranks."] if few else []


def _few(number: int, enough: int, noun: str) -> list[str]:
    return [f"{fmt.plural(number, noun)} (fewer than {enough})"] if number < enough else []
