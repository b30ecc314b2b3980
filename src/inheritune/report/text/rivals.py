"""The primary run beside the others: which has the lower loss, and how sure that is."""

from __future__ import annotations

from inheritune.evaluation import compare
from inheritune.records.runs import ResultRecord
from inheritune.report.read.runs import Run
from inheritune.report.text import format as fmt

_ABOUT_EQUAL = 0.01
"""Two runs count as trained on as many tokens when the numbers differ by at most this fraction."""


def note(main: Run, other: Run) -> str:
    """Compare the primary run with another by loss: with a paired test where both kept the loss of each window."""
    own, rival = main.record.result.evaluation, other.record.result.evaluation
    who = f"{other.label} ({other.record.method}, {_budget(main.record.result, other.record.result)})"
    windows = [each.record.data and each.record.data.digest for each in (main, other)]
    if windows[0] != windows[1] or (own.windows, own.length) != (rival.windows, rival.length):
        return f"{who} was measured on other data or windows: the losses are not comparable."
    text, gap = f"{who} reaches validation loss {fmt.loss(rival.loss)}: ", own.loss - rival.loss
    if main.losses is None or other.losses is None:
        side = "lower" if gap < 0 else "higher"
        return (
            f"{text}that of {main.label} is {abs(gap):.4f} nats {side}; no interval can be given for this difference."
        )
    test = compare(main.losses, other.losses)
    evidence = f"{fmt.interval(test.ci_low, test.ci_high, test.confidence)}, paired over {test.windows:,} windows"
    if test.ci_low <= 0 <= test.ci_high:
        return f"{text}the two cannot be told apart, {fmt.signed(test.difference)} nats for {main.label} ({evidence})."
    side = "better" if test.difference < 0 else "worse"
    return f"{text}{main.label} is {side} by {abs(test.difference):.4f} nats ({evidence})."


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
