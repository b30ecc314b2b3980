"""How numbers are written on the page: one place, so that a sentence and a table never round differently."""

from __future__ import annotations

import functools

from inheritune import layers
from inheritune.records.evaluation import Comparison, LossSummary, Speed

NOTHING = "–"
"""What a table cell shows where the record has no number."""

_MINUS = "−"


def count(number: float | None) -> str:
    """Write a count with three significant digits and K, M, B or T: 785408 is `785K`, 1558000000 is `1.56B`."""
    if number is None:
        return NOTHING
    if number < 1000:
        return f"{number:.0f}"
    power = next((power for power in (1, 2, 3) if number < 999.5 * 1000**power), 4)
    return f"{number / 1000**power:#.3g}".rstrip(".") + " KMBT"[power]


def loss(value: float | None) -> str:
    """Write a loss in nats per token with four decimals: the matching margin is 0.01, so two would hide it."""
    return NOTHING if value is None else f"{value:.4f}"


def signed(value: float) -> str:
    """Write a difference in nats per token with its sign, `+0.0031` or `−0.0120`."""
    return f"{value:+.4f}".replace("-", _MINUS)


def percent(fraction: float) -> str:
    """Write a fraction as a percentage without needless decimals: 0.95 is `95 %`, 0.995 is `99.5 %`."""
    return f"{100 * fraction:.4g} %"


def interval(ci_low: float, ci_high: float, confidence: float) -> str:
    """Write a confidence interval of a difference of losses: `95 % CI −0.0019 to +0.0081`."""
    return f"{percent(confidence)} CI {signed(ci_low)} to {signed(ci_high)}"


def counted(measured: LossSummary | Comparison) -> str:
    """Say on how much a loss or a test rests: `2,000 windows of 87 documents`."""
    if measured.clusters is None:
        return f"{measured.windows:,} windows, taken as independent"
    return f"{measured.windows:,} windows of {layers.plural(measured.clusters, 'document')}"


def tested(comparison: Comparison | None) -> list[str]:
    """Write a comparison for two table cells: its difference, the interval on a second line; whether it matches."""
    if comparison is None:
        return [NOTHING, NOTHING]
    bounds = interval(comparison.ci_low, comparison.ci_high, comparison.confidence)
    return [f"{signed(comparison.difference)}\n{bounds}", "yes" if comparison.matches else "no"]


def rate(per_second: float) -> str:
    """Write tokens per second: whole numbers with thousands separated, one decimal below 100."""
    return f"{per_second:,.0f}" if per_second >= 99.95 else f"{per_second:.1f}"


def duration(seconds: float | None) -> str:
    """Write a time span in the two largest units: `45 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds is None:
        return NOTHING
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


ranges = functools.partial(layers.ranges, dash=NOTHING)
"""Ascending layers as ranges with an en dash: `0–2, 5`; the dash alone for none."""


def how(measured: Speed) -> str:
    """Return how a speed was measured: `float32, 2 threads`; on an accelerator its name, and no threads."""
    place = layers.plural(measured.threads, "thread") if measured.device == "cpu" else measured.device
    return place if measured.dtype is None else f"{measured.dtype.removeprefix('torch.')}, {place}"
