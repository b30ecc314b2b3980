"""The verdict: what the records show, in one sentence, and the notes that keep it honest.

Every function takes plain records and returns text. Nothing is tuned to a story: each outcome of the paired test has
its own words, and a comparison that was not made is said not to have been made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from inheritune.evaluation import Comparison, compare
from inheritune.report.read.load import Analysis, Run, primary, same_reference
from inheritune.report.text import format as fmt

Outcome = Literal["better", "matched", "undecided", "worse", "untested", "alone"]

_SUBJECTS = {"inheritune": "The inherited model", "scratch": "The model trained from scratch"}
_CLAIMS: dict[Outcome, str] = {
    "better": "is better than the reference",
    "matched": "matches the reference",
    "undecided": "is not shown to match the reference",
    "worse": "does not match the reference within its budget",
    "untested": "was not tested against the reference",
}
_ABOUT_EQUAL = 0.01
"""Two runs count as trained on as many tokens when the numbers differ by at most this fraction."""


@dataclass(frozen=True)
class Verdict:
    """What the page opens with.

    Attributes:
        outcome: the outcome of the paired test against the reference.
        sentence: the verdict.
        notes: what a reader must know beside it, a sentence or two each.
    """

    outcome: Outcome
    sentence: str
    notes: list[str]


def verdict(runs: Sequence[Run]) -> Verdict:
    """Make the verdict on the primary run (the first made by Inheritune, else the first) of `runs`."""
    main = primary(runs)
    others = [run for run in runs if run is not main]
    notes = [lazy_note(_reference_analysis(runs, main))] if main.reference is not None else []
    notes += depth_note(main.record)
    notes += repeated_test_note(main.record)
    notes += [rival_note(main, other) for other in others]
    if main.method == "inheritune" and not any(_is_fair_scratch(main, run) for run in others):
        notes.append(
            "No model of the same depth trained from scratch on as many tokens is among these runs, so what "
            "inheriting the weights gained cannot be told from them."
        )
    notes += [
        f"{run.label}: {name} is named in the record but is not on the disk." for run in runs for name in run.absent
    ]
    return Verdict(judge(main.record), sentence(main.record), notes)


def judge(record: dict[str, Any]) -> Outcome:
    """Return the outcome of a run record's paired test.

    `matched` means that the upper end of the confidence interval is within the margin (non-inferiority), `better`
    that the whole interval is below 0, `worse` that the whole interval is above 0 and passes the margin, and
    `undecided` that the interval holds 0 and passes the margin.
    """
    if record.get("reference") is None:
        return "alone"
    comparison = record["result"].get("comparison")
    if comparison is None:
        return "untested"
    if comparison["matches"]:
        return "better" if comparison["ci_high"] < 0 else "matched"
    return "worse" if comparison["ci_low"] > 0 else "undecided"


def sentence(record: dict[str, Any]) -> str:
    """Return the verdict on one run record: size, loss with the interval of its difference, tokens, speed."""
    outcome = judge(record)
    subject = f"{subject_of(record['method'])} with {_size(record)}"
    if outcome == "alone":
        spent = f"{_tokens(record)} without a reference to measure it against"
        return f"{subject}, after {spent}, has {_losses(outcome, record)}; {_speed(record)}."
    return f"{subject} {_CLAIMS[outcome]} after {_tokens(record)}: {_losses(outcome, record)}; {_speed(record)}."


def subject_of(method: str) -> str:
    """Return what a run's result is called in a sentence."""
    return _SUBJECTS.get(method, f"The {method} model")


def _size(record: dict[str, Any]) -> str:
    result, reference = record["result"], record.get("reference")
    own = fmt.plural(result["layers"], "layer")
    if reference is None:
        return f"{own} and {fmt.count(result['parameters'])} parameters"
    share = fmt.percent(round(result["parameters"] / reference["parameters"], 2))
    counts = f"{fmt.count(result['parameters'])} parameters against {fmt.count(reference['parameters'])}, {share}"
    return f"{own} against {reference['layers']} ({counts})"


def _tokens(record: dict[str, Any]) -> str:
    spent = f"training on {fmt.count(record['result']['tokens'])} tokens"
    reference = record.get("reference")
    if reference is None:
        return spent
    if reference.get("tokens") is None:
        return f"{spent} (the reference's own are not recorded)"
    return f"{spent} (the reference: {fmt.count(reference['tokens'])})"


def _losses(outcome: Outcome, record: dict[str, Any]) -> str:
    own = f"validation loss {_loss(record['result'])}"
    reference, comparison = record.get("reference"), record["result"].get("comparison")
    if reference is not None:
        own += f" against {_loss(reference)}"
    if comparison is None:
        return f"{own} nats per token" + ("" if reference is None else ", without a paired test")
    text = f"{own}, a difference of {fmt.signed(comparison['difference'])} nats per token ({fmt.interval(comparison)}"
    return f"{text}; margin {comparison['margin']:g}){_reading(outcome, comparison)}"


def _reading(outcome: Outcome, comparison: dict[str, Any]) -> str:
    """Say how to read an interval that a bare 'matches' or 'does not match' would gloss over."""
    if outcome == "undecided":
        return ", an interval that holds 0 but passes the margin"
    if outcome == "matched" and comparison["ci_low"] > 0:
        return ", measurably worse but by less than the margin"
    return ""


def _loss(model: dict[str, Any]) -> str:
    evaluation = model.get("evaluation")
    return "not measured" if evaluation is None else fmt.loss(evaluation["loss"])


def _speed(record: dict[str, Any]) -> str:
    own = _generation(record["result"])
    if own is None:
        return "its generation speed was not measured"
    reference = record.get("reference") or {}
    text = f"it generates {fmt.rate(own)} tokens/s"
    other = _generation(reference)
    if other is None:
        return text
    if not _same_conditions(record["result"]["speed"], reference["speed"]):
        return f"{text} (the reference {fmt.rate(other)}, under other conditions)"
    return f"{text}, {own / other:.2f} times the reference's {fmt.rate(other)}"


def _generation(model: dict[str, Any]) -> float | None:
    speed = model.get("speed")
    return None if speed is None else speed.get("generate_tokens_per_second")


def _same_conditions(one: dict[str, Any], other: dict[str, Any]) -> bool:
    keys = ("batch", "prompt_length", "new_tokens", "device", "threads")
    return all(one.get(key) == other.get(key) for key in keys)


def lazy_layers(analysis: Analysis, mask: str) -> list[int]:
    """Return the lazy layers (MaxRank = 1, Def. G.1 of the paper) under one mask, numbered from 0."""
    return [layer["index"] for layer in analysis.spectra["layers"] if layer[mask]["lazy"]]


def lazy_note(analysis: Analysis | None) -> str:
    """Say which layers of the reference are lazy, mask by mask; none at this scale is a finding too."""
    if analysis is None:
        return "The attention of the reference was not analysed, so whether any of its layers is lazy is not known."
    masks = list(analysis.spectra["masks"])
    lazy = {mask: lazy_layers(analysis, mask) for mask in masks}
    depth, tau = len(analysis.spectra["layers"]), analysis.spectra["tau"]
    if not any(lazy.values()):
        return (
            f"No layer of the reference is lazy at this scale (MaxRank = 1 at τ = {tau:g}) under the "
            f"{' or the '.join(masks)} mask: what these runs show is about inherited weights, not about lazy layers."
        )
    parts = [
        f"{len(layers)} under the {mask} mask ({fmt.ranges(layers)})" if layers else f"none under the {mask} mask"
        for mask, layers in lazy.items()
    ]
    found = " and ".join(parts)
    return f"Of the reference's {depth} layers, counted from 0, lazy (MaxRank = 1 at τ = {tau:g}) are {found}."


def depth_note(record: dict[str, Any]) -> list[str]:
    """Say so when the result is as deep as the reference: then nothing was made smaller."""
    reference, layers = record.get("reference"), record["result"]["layers"]
    if reference is None or record["method"] != "inheritune" or layers < reference["layers"]:
        return []
    return [f"The model grew to all {layers} layers of the reference: nothing was saved in depth."]


def repeated_test_note(record: dict[str, Any]) -> list[str]:
    """Say what testing after every round does to a match: each test may pass by chance, and growth stops at the first.

    The chance that one test passes a model that is worse by more than the margin is half of what the interval leaves
    out; for several tests the sum bounds it (Bonferroni).
    """
    tests = [turn["comparison"] for turn in record["rounds"] if turn.get("comparison")]
    if len(tests) < 2 or judge(record) not in ("better", "matched"):
        return []
    chance = fmt.percent(sum((1 - test["confidence"]) / 2 for test in tests))
    return [
        f"The test was made after each of {len(tests)} rounds on the same windows and growth stops at the first match: "
        f"the chance that a model worse by more than the margin passes is at most {chance}, summed over the rounds."
    ]


def rival_note(main: Run, other: Run) -> str:
    """Compare the primary run with another by validation loss.

    Where both kept the loss of each window, their difference is tested in pairs, as against the reference. Else the
    records hold each run's paired interval against the reference: whatever the correlation of the two differences, the
    standard error of their difference is at most the sum of theirs, so the sum of the half-widths bounds the half-width
    of the interval between the runs, a cautious interval.
    """
    own, rival = main.result["evaluation"], other.result["evaluation"]
    who = f"{other.label} ({other.method}, {_budget(main.result, other.result)})"
    if own is None or rival is None:
        return f"{who} cannot be compared: a validation loss was not measured."
    if _digest(main) != _digest(other) or any(own[key] != rival[key] for key in ("windows", "length")):
        return f"{who} was measured on other data or windows: the losses are not comparable."
    text = f"{who} reaches validation loss {fmt.loss(rival['loss'])}: "
    if main.losses is not None and other.losses is not None:
        return text + _paired(main, compare(main.losses, other.losses))
    gap = own["loss"] - rival["loss"]
    bound = _bound(main, other)
    if bound is None:
        side = "lower" if gap < 0 else "higher"
        return (
            f"{text}that of {main.label} is {abs(gap):.4f} nats {side}; no interval can be given for this difference."
        )
    level = fmt.percent(main.result["comparison"]["confidence"])
    margin = f"{level} CI at most ±{bound:.4f}, a bound from both runs' paired intervals"
    if abs(gap) <= bound:
        return f"{text}the two cannot be told apart, {fmt.signed(gap)} nats for {main.label} ({margin})."
    word = "better" if gap < 0 else "worse"
    return f"{text}{main.label} is {word} by {abs(gap):.4f} nats ({margin})."


def _paired(main: Run, test: Comparison) -> str:
    """Say what the paired test between two runs shows."""
    interval = f"{fmt.interval(test.as_json())}, paired over {test.windows:,} windows"
    if test.ci_low <= 0 <= test.ci_high:
        return f"the two cannot be told apart, {fmt.signed(test.difference)} nats for {main.label} ({interval})."
    word = "better" if test.difference < 0 else "worse"
    return f"{main.label} is {word} by {abs(test.difference):.4f} nats ({interval})."


def _bound(main: Run, other: Run) -> float | None:
    """Return the sum of the half-widths of two runs' intervals against one reference, or None without such a pair."""
    one, two = (run.result.get("comparison") for run in (main, other))
    if one is None or two is None or not same_reference(main, other) or one["confidence"] != two["confidence"]:
        return None
    return float(one["ci_high"] - one["ci_low"] + two["ci_high"] - two["ci_low"]) / 2


def _budget(own: dict[str, Any], rival: dict[str, Any]) -> str:
    """Say how a rival's depth and tokens stand to the primary run's."""
    depth = "the same depth" if own["layers"] == rival["layers"] else fmt.plural(rival["layers"], "layer")
    if abs(rival["tokens"] - own["tokens"]) <= _ABOUT_EQUAL * own["tokens"]:
        return f"{depth} and as many tokens"
    times = f", {rival['tokens'] / own['tokens']:.2f} times as many" if own["tokens"] else ""
    return f"{depth}, {fmt.count(rival['tokens'])} tokens{times}"


def _is_fair_scratch(main: Run, other: Run) -> bool:
    if other.method != "scratch" or other.result["layers"] != main.result["layers"]:
        return False
    return bool(abs(other.result["tokens"] - main.result["tokens"]) <= _ABOUT_EQUAL * main.result["tokens"])


def _digest(run: Run) -> Any:
    return (run.record.get("data") or {}).get("digest")


def _reference_analysis(runs: Sequence[Run], main: Run) -> Analysis | None:
    """Return the analysis of the primary run's reference, which another run may hold."""
    return next(
        (run.reference_analysis for run in [main, *runs] if run.reference_analysis and same_reference(main, run)), None
    )
