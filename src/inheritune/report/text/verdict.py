"""The verdict: what the records show, in one sentence, what to do next, and the notes that belong to it.

Each outcome of the paired test has its own words, and a comparison that was not made is said not to have been made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from inheritune.records.evaluation import Comparison
from inheritune.records.runs import RunRecord
from inheritune.report.read.analyses import Analysis
from inheritune.report.read.models import is_same_reference, primary
from inheritune.report.read.runs import Run
from inheritune.report.text import evidence, rivals, speed
from inheritune.report.text import format as fmt
from inheritune.report.text.steps import Step, after_run

Outcome = Literal["better", "matched", "undecided", "worse", "untested", "alone"]

_SUBJECTS = {"inheritune": "The inherited model", "scratch": "The model trained from scratch"}
_CLAIMS: dict[Outcome, str] = {
    "better": "is better than the reference",
    "matched": "matches the reference",
    "undecided": "is not shown to match the reference",
    "worse": "does not match the reference within its budget",
    "untested": "was not tested against the reference",
}


@dataclass(frozen=True)
class Verdict:
    """What the page opens with."""

    outcome: Outcome
    """Of the paired test against the reference."""
    sentence: str
    steps: list[Step]
    """What to do next."""
    cautions: list[str]
    """How little it rests on, where that is little."""
    notes: list[str]
    """What a reader must know beside it, a sentence or two each."""


def verdict(runs: Sequence[Run]) -> Verdict:
    """Make the verdict on the primary run (the first made by Inheritune, else the first) of `runs`."""
    main = primary(runs)
    others = [run for run in runs if run is not main]
    notes = [lazy_note(_reference_analysis(runs, main))] if main.record.reference is not None else []
    notes += [*depth_note(main.record), *repeated_test_note(main.record)]
    notes += [rivals.note(main, other) for other in others]
    if main.record.method == "inheritune" and not any(rivals.is_fair_scratch(main, run) for run in others):
        notes.append(
            "No model of the same depth trained from scratch on as many tokens is among these runs, so what "
            "inheriting the weights gained cannot be told from them."
        )
    notes += [
        f"{run.label}: {name} is named in the record but is not on the disk." for run in runs for name in run.absent
    ]
    cautions = evidence.of_runs(main, others)
    return Verdict(judge(main.record), sentence(main.record), after_run(main), cautions, notes)


def judge(record: RunRecord) -> Outcome:
    """Return the outcome of a run record's paired test.

    `matched` means that the upper end of the confidence interval is within the margin (non-inferiority), `better`
    that the whole interval is below 0, `worse` that the whole interval is above 0 and passes the margin, and
    `undecided` that the interval holds 0 and passes the margin.
    """
    comparison = record.result.comparison
    if record.reference is None:
        return "alone"
    if comparison is None:
        return "untested"
    if comparison.matches:
        return "better" if comparison.ci_high < 0 else "matched"
    return "worse" if comparison.ci_low > 0 else "undecided"


def sentence(record: RunRecord) -> str:
    """Return the verdict on one run record: size, loss with the interval of its difference, tokens, speed."""
    outcome = judge(record)
    subject = f"{_SUBJECTS.get(record.method, f'The {record.method} model')} with {_size(record)}"
    if outcome == "alone":
        spent = f"{_tokens(record)} without a reference to measure it against"
        return f"{subject}, after {spent}, has {_losses(outcome, record)}; {speed.sentence(record)}."
    claim = f"{subject} {_CLAIMS[outcome]} after {_tokens(record)}"
    return f"{claim}: {_losses(outcome, record)}; {speed.sentence(record)}."


def _size(record: RunRecord) -> str:
    result, reference = record.result, record.reference
    own = fmt.plural(result.layers, "layer")
    if reference is None:
        return f"{own} and {fmt.count(result.parameters)} parameters"
    share = fmt.percent(round(result.parameters / reference.parameters, 2))
    counts = f"{fmt.count(result.parameters)} parameters against {fmt.count(reference.parameters)}, {share}"
    return f"{own} against {reference.layers} ({counts})"


def _tokens(record: RunRecord) -> str:
    spent, reference = f"training on {fmt.count(record.result.tokens)} tokens", record.reference
    if reference is None:
        return spent
    if reference.tokens is None:
        return f"{spent} (the reference's own are not recorded)"
    return f"{spent} (the reference: {fmt.count(reference.tokens)})"


def _losses(outcome: Outcome, record: RunRecord) -> str:
    reference, comparison = record.reference, record.result.comparison
    own = f"validation loss {fmt.loss(record.result.evaluation.loss)}"
    if reference is not None:
        own += f" against {fmt.loss(reference.evaluation.loss)}"
    if comparison is None:
        return f"{own} nats per token" + ("" if reference is None else ", without a paired test")
    bounds = fmt.interval(comparison.ci_low, comparison.ci_high, comparison.confidence)
    text = f"{own}, a difference of {fmt.signed(comparison.difference)} nats per token ({bounds}"
    return f"{text}; margin {comparison.margin:g}){_reading(outcome, comparison)}"


def _reading(outcome: Outcome, comparison: Comparison) -> str:
    """Say how to read an interval where 'matches' or 'does not match' alone would say too much."""
    if outcome == "undecided":
        return ", an interval that holds 0 but passes the margin"
    if outcome == "matched" and comparison.ci_low > 0:
        return ", measurably worse but by less than the margin"
    return ""


def lazy_note(analysis: Analysis | None) -> str:
    """Say which layers of the reference are lazy, mask by mask; none at this scale is a finding too."""
    if analysis is None:
        return "The attention of the reference was not analysed, so whether any of its layers is lazy is not known."
    masks, tau = analysis.masks, analysis.record.tau
    lazy = {mask: analysis.lazy_layers(mask) for mask in masks}
    if not any(lazy.values()):
        return (
            f"No layer of the reference is lazy at this scale (MaxRank = 1 at τ = {tau:g}) under the "
            f"{' or the '.join(masks)} mask: what these runs show is about inherited weights, not about lazy layers."
        )
    parts = [
        f"{len(layers)} under the {mask} mask ({fmt.ranges(layers)})" if layers else f"none under the {mask} mask"
        for mask, layers in lazy.items()
    ]
    return (
        f"Of the reference's {len(analysis.record.layers)} layers, counted from 0, lazy (MaxRank = 1 at τ = {tau:g}) "
        f"are {' and '.join(parts)}."
    )


def depth_note(record: RunRecord) -> list[str]:
    """Say so when the result is as deep as the reference: then nothing was made smaller."""
    reference, layers = record.reference, record.result.layers
    if reference is None or record.method != "inheritune" or layers < reference.layers:
        return []
    return [f"The model grew to all {layers} layers of the reference: nothing was saved in depth."]


def repeated_test_note(record: RunRecord) -> list[str]:
    """Say what testing after every round does to a match: each test may pass by chance, and growth stops at the first.

    The chance that one test passes a model that is worse by more than the margin is half of what the interval leaves
    out; for several tests the sum bounds it (Bonferroni).
    """
    tests = [each.comparison for each in record.rounds if each.comparison is not None]
    if len(tests) < 2 or judge(record) not in ("better", "matched"):
        return []
    chance = fmt.percent(sum((1 - test.confidence) / 2 for test in tests))
    return [
        f"The test was made after each of {len(tests)} rounds on the same windows and growth stops at the first match: "
        f"the chance that a model worse by more than the margin passes is at most {chance}, summed over the rounds."
    ]


def _reference_analysis(runs: Sequence[Run], main: Run) -> Analysis | None:
    """Return the analysis of the primary run's reference, which another run may hold."""
    alike = [run for run in runs if is_same_reference(run.record.reference, main.record.reference)]
    return next((run.reference_analysis for run in [main, *alike] if run.reference_analysis), None)
