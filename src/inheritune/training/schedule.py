"""The learning rate over a round (paper, App. F): linear warm-up, then a cosine down to a floor."""

from __future__ import annotations

import math


def cosine_with_warmup(step: int, steps: int, warmup: int, peak: float, floor: float) -> float:
    """Return the learning rate of optimiser step `step` (0-based) of `steps`.

    The warm-up's step s has `peak * (s + 1) / warmup`; the cosine starts at the peak and its last step is at `floor`.
    A warm-up longer than half the round is shortened to half of it, so that a short round still reaches its peak.
    """
    warmup = min(warmup, steps // 2)
    if step < warmup:
        return peak * (step + 1) / warmup
    done = min((step - warmup) / max(steps - 1 - warmup, 1), 1.0)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * done))
