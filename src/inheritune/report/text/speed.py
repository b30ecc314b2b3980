"""How fast models generate, in words. Only speeds that were measured in turns are compared.

Two measurements one after the other differ by some per cent by themselves, so without an interval nothing is said of
which model is faster.
"""

from __future__ import annotations

from inheritune.records.evaluation import Speed, SpeedRatio
from inheritune.records.runs import RunRecord
from inheritune.report.text import format as fmt


def sentence(record: RunRecord) -> str:
    """Return what is known of the speed of a run's result, and of how it stands to the reference's."""
    own, other = record.result.speed, record.reference.speed if record.reference else None
    if own is None:
        return "its generation speed was not measured"
    text = f"it generates {fmt.rate(own.generate_tokens_per_second)} tokens/s"
    if other is None:
        return f"{text} ({how(own)})"
    both = f"{text}, the reference {fmt.rate(other.generate_tokens_per_second)}"
    if not _same_conditions(own, other):
        return f"{both}, under other conditions ({how(own)} and {how(other)}: not comparable)"
    if record.result.speed_ratio is None:
        return f"{both} ({how(own)}; measured one after the other, so a few per cent mean nothing)"
    return f"{both} ({how(own)}): {ratio(record.result.speed_ratio)}"


def ratio(measured: SpeedRatio) -> str:
    """Say which of two models generates faster; neither, where the interval of the ratio holds 1."""
    bounds = f"{fmt.percent(measured.confidence)} CI {measured.ci_low:.2f} to {measured.ci_high:.2f}"
    text = f"{measured.ratio:.2f} times as fast ({bounds}, {fmt.plural(measured.turns, 'turn')})"
    return text if not measured.ci_low <= 1 <= measured.ci_high else f"no difference is shown, {text}"


def how(measured: Speed) -> str:
    """Return how a speed was measured: `float32, 2 threads`; on an accelerator its name, and no threads."""
    place = fmt.plural(measured.threads, "thread") if measured.device == "cpu" else measured.device
    return place if measured.dtype is None else f"{measured.dtype.removeprefix('torch.')}, {place}"


def _same_conditions(one: Speed, other: Speed) -> bool:
    names = ("batch", "prompt_length", "new_tokens", "device", "threads", "dtype")
    return all(one[name] == other[name] for name in names)
