"""Layers by their numbers: runs of consecutive ones, and ranges as a person reads and types them."""

from __future__ import annotations

from collections.abc import Iterable


def ranges(layers: Iterable[int], dash: str = "-") -> str:
    """Return layers as ranges with both ends included: `0-11, 14`; a dash for none."""
    return ", ".join(f"{run[0]}" if len(run) == 1 else f"{run[0]}{dash}{run[-1]}" for run in runs(layers)) or dash


def runs(layers: Iterable[int]) -> list[list[int]]:
    """Return the longest runs of consecutive layers, in the order given."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return runs
