"""The primary run beside the others: which has the lower loss, and how sure that is."""

from __future__ import annotations

from inheritune.evaluation import compare
from inheritune.records.runs import ResultRecord
from inheritune.report.read.models import is_same_reference
from inheritune.report.read.runs import Run
from inheritune.report.text import format as fmt

_ABOUT_EQUAL = 0.01
"""Two runs count as trained on as many tokens when the numbers differ by at most this fraction."""


def note(main: Run, other: Run) -> str:
    """Compare the primary run with another by validation loss.

    Where both kept the loss of each window, their difference is tested in pairs, as against the reference. Else the
    records hold each run's paired interval against the reference: whatever the correlation of the two differences, the
    standard error of their difference is at most the sum of theirs, so the sum of the half-widths bounds the half-width
    of the interval between the runs, a cautious interval.
    """
    own, rival = main.record.result.evaluation, other.record.result.evaluation
    who = f"{other.label} ({other.record.method}, {_budget(main.record.result, other.record.result)})"
    windows = [(each.record.data and each.record.data.digest) for each in (main, other)]
    if windows[0] != windows[1] or (own.windows, own.length) != (rival.windows, rival.length):
        return f"{who} was measured on other data or windows: the losses are not comparable."
    text = f"{who} reaches validation loss {fmt.loss(rival.loss)}: "
    if main.losses is not None and other.losses is not None:
        test = compare(main.losses, other.losses)
        bounds = fmt.interval(test.ci_low, test.ci_high, test.confidence)
        sure = not test.ci_low <= 0 <= test.ci_high
        return text + _outcome(main, test.difference, sure, f"{bounds}, paired over {test.windows:,} windows")
    gap, bound = own.loss - rival.loss, _bound(main.record.result, other.record.result)
    if bound is None or not is_same_reference(main.record.reference, other.record.reference):
        side = "lower" if gap < 0 else "higher"
        return (
            f"{text}that of {main.label} is {abs(gap):.4f} nats {side}; no interval can be given for this difference."
        )
    half, level = bound
    evidence = f"{fmt.percent(level)} CI at most ±{half:.4f}, a bound from both runs' paired intervals"
    return text + _outcome(main, gap, abs(gap) > half, evidence)


def _outcome(main: Run, gap: float, sure: bool, evidence: str) -> str:
    if not sure:
        return f"the two cannot be told apart, {fmt.signed(gap)} nats for {main.label} ({evidence})."
    return f"{main.label} is {'better' if gap < 0 else 'worse'} by {abs(gap):.4f} nats ({evidence})."


def _bound(own: ResultRecord, rival: ResultRecord) -> tuple[float, float] | None:
    """Return the sum of the half-widths of two intervals against one reference and their level; None without both."""
    one, two = own.comparison, rival.comparison
    if one is None or two is None or one.confidence != two.confidence:
        return None
    return (one.ci_high - one.ci_low + two.ci_high - two.ci_low) / 2, one.confidence


def _budget(own: ResultRecord, rival: ResultRecord) -> str:
    """Say how a rival's depth and tokens stand to the primary run's."""
    depth = "the same depth" if own.layers == rival.layers else fmt.plural(rival.layers, "layer")
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
