"""Layers by their numbers: runs of consecutive ones, and ranges as a person reads and types them."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

Item = TypeVar("Item")


def ranges(layers: Iterable[int], dash: str = "-") -> str:
    """Return layers as ranges with both ends included: `0-11, 14`; a dash for none."""
    return ", ".join(f"{run[0]}" if len(run) == 1 else f"{run[0]}{dash}{run[-1]}" for run in runs(layers)) or dash


def _is_next(one: Any, two: Any) -> bool:
    return bool(two == one + 1)


def runs(items: Iterable[Item], follows: Callable[[Item, Item], bool] = _is_next) -> list[list[Item]]:
    """Return the longest runs of items each of which follows the one before it, in the order given.

    `follows` says whether its second argument continues a run that ends with the first; of numbers, the next one does.
    """
    found: list[list[Item]] = []
    for item in items:
        if found and follows(found[-1][-1], item):
            found[-1].append(item)
        else:
            found.append([item])
    return found


def plural(number: int, noun: str) -> str:
    """Write a count with its noun: `1 layer`, `3 layers`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
