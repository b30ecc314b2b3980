"""The verdict: what the records show, in one sentence, what to do next, and the notes that belong to it.

Each outcome of the paired test has its own words, and a comparison that was not made is said not to have been made.
Only speeds that were measured in turns are compared: two measurements one after the other differ by some per cent by
themselves, so without an interval nothing is said of which model is faster.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from inheritune.evaluation import compare
from inheritune.evaluation.paired import mean_error
from inheritune.layers import plural
from inheritune.records.evaluation import SpeedRatio
from inheritune.records.runs import ResultRecord, RunRecord
from inheritune.report.read.folders import Analysis, Run
from inheritune.report.read.models import is_same_reference
from inheritune.report.text import format as fmt
from inheritune.report.text import steps
from inheritune.report.text.steps import Step

_ABOUT_EQUAL = 0.01
"""Two runs count as trained on as many tokens when the numbers differ by at most this fraction."""

_CONDITIONS = ("batch", "prompt_length", "new_tokens", "device", "threads", "dtype")
"""Two speeds are comparable when all of these are the same."""

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


def verdict(runs: Sequence[Run], main: Run | None = None) -> Verdict:
    """Make the verdict on the run `main` of `runs`; by default the first made by Inheritune, else the first."""
    main = main or next((run for run in runs if run.record.method == "inheritune"), runs[0])
    others = [run for run in runs if run is not main]
    notes = []
    if main.record.reference is not None:
        # Another run may hold the analysis of this reference.
        alike = [main, *(run for run in runs if is_same_reference(run.record.reference, main.record.reference))]
        notes.append(lazy_note(next((run.reference_analysis for run in alike if run.reference_analysis), None)))
    notes += [*depth_note(main.record), *repeated_test_note(main.record)]
    notes += [f"{run.label} was not trained here: {run.record.shipped}." for run in runs if run.record.shipped]
    notes += [rival_note(main, other) for other in others]
    if main.record.method == "inheritune" and not any(is_fair_scratch(main, run) for run in others):
        notes.append(
            "No model of the same depth trained from scratch on as many tokens is among these runs, so what "
            "inheriting the weights gained cannot be told from them."
        )
    notes += [
        f"{run.label}: {name} is named in the record but is not on the disk." for run in runs for name in run.absent
    ]
    cautions = steps.weak_runs(main, others)
    return Verdict(judge(main.record), sentence(main.record), steps.after_run(main), cautions, notes)


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
    claim = f", after {_tokens(record)} without a reference to measure it against, has"
    if outcome != "alone":
        claim = f" {_CLAIMS[outcome]} after {_tokens(record)}:"
    return f"{subject}{claim} {_losses(outcome, record)}; {speed_words(record)}."


def _size(record: RunRecord) -> str:
    result, reference = record.result, record.reference
    own = plural(result.layers, "layer")
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
    reading = ""  # where 'matches' or 'does not match' alone would say too much
    if outcome == "undecided":
        reading = ", an interval that holds 0 but passes the margin"
    elif outcome == "matched" and comparison.ci_low > 0:
        reading = ", measurably worse but by less than the margin"
    return f"{text}, {fmt.counted(comparison)}; margin {comparison.margin:g}){reading}"


def speed_words(record: RunRecord) -> str:
    """Return what is known of the speed of a run's result, and of how it stands to the reference's."""
    own, other = record.result.speed, record.reference.speed if record.reference else None
    if own is None:
        return "its generation speed was not measured"
    text = f"it generates {fmt.rate(own.generate_tokens_per_second)} tokens/s"
    if other is None:
        return f"{text} ({fmt.how(own)})"
    both = f"{text}, the reference {fmt.rate(other.generate_tokens_per_second)}"
    if any(own[name] != other[name] for name in _CONDITIONS):
        return f"{both}, under other conditions ({fmt.how(own)} and {fmt.how(other)}: not comparable)"
    if record.result.speed_ratio is None:
        return f"{both} ({fmt.how(own)}; measured one after the other, so a few per cent mean nothing)"
    return f"{both} ({fmt.how(own)}): {ratio_words(record.result.speed_ratio)}"


def ratio_words(measured: SpeedRatio) -> str:
    """Say which of two models generates faster; neither, where the interval of the ratio holds 1."""
    bounds = f"{fmt.percent(measured.confidence)} CI {measured.ci_low:.2f} to {measured.ci_high:.2f}"
    text = f"{measured.ratio:.2f} times as fast ({bounds}, {plural(measured.turns, 'turn')})"
    return text if not measured.ci_low <= 1 <= measured.ci_high else f"no difference is shown, {text}"


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


def rival_note(main: Run, other: Run) -> str:
    """Compare the primary run with another by loss: with a paired test where both kept the loss of each window."""
    own, rival = main.record.result.evaluation, other.record.result.evaluation
    who = f"{other.label} ({other.record.method}, {_budget(main.record.result, other.record.result)})"
    windows = [each.record.data and each.record.data.digest for each in (main, other)]
    if windows[0] != windows[1] or (own.windows, own.length) != (rival.windows, rival.length):
        return f"{who} was measured on other data or windows: the losses are not comparable."
    text, gap = f"{who} reaches validation loss {fmt.loss(rival.loss)}: ", own.loss - rival.loss
    documents = other.documents if main.documents is None else main.documents
    if main.losses is None or other.losses is None or math.isinf(mean_error(main.losses, documents)[0]):
        side = "lower" if gap < 0 else "higher"
        return (
            f"{text}that of {main.label} is {abs(gap):.4f} nats {side}; no interval can be given for this difference."
        )
    test = compare(main.losses, other.losses, groups=documents)
    evidence = f"{fmt.interval(test.ci_low, test.ci_high, test.confidence)}, paired over {fmt.counted(test)}"
    if test.ci_low <= 0 <= test.ci_high:
        return f"{text}the two cannot be told apart, {fmt.signed(test.difference)} nats for {main.label} ({evidence})."
    side = "better" if test.difference < 0 else "worse"
    return f"{text}{main.label} is {side} by {abs(test.difference):.4f} nats ({evidence})."


def _budget(own: ResultRecord, rival: ResultRecord) -> str:
    """Say how a rival's depth and tokens stand to the primary run's."""
    depth = "the same depth" if own.layers == rival.layers else plural(rival.layers, "layer")
    if _as_many_tokens(own, rival):
        return f"{depth} and as many tokens"
    times = f", {rival.tokens / own.tokens:.2f} times as many" if own.tokens else ""
    return f"{depth}, {fmt.count(rival.tokens)} tokens{times}"


def _as_many_tokens(own: ResultRecord, rival: ResultRecord) -> bool:
    return abs(rival.tokens - own.tokens) <= _ABOUT_EQUAL * own.tokens


def is_fair_scratch(main: Run, other: Run) -> bool:
    """Tell whether a run is the baseline of another: from scratch, as deep, on as many tokens."""
    own, rival = main.record.result, other.record.result
    return other.record.method == "scratch" and own.layers == rival.layers and _as_many_tokens(own, rival)
