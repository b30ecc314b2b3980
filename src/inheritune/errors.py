"""Errors a user can mend. Each is one line: what was passed, what was expected, the nearest valid choice.

The command line turns an `InherituneError` into that line and exit status 2; every other exception is an internal
fault and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InherituneError(Exception):
    """A mistake in what the user passed; `str(error)` is the one line to show."""


class ModelError(InherituneError):
    """The model cannot be found, read, or is not a decoder language model."""


class DataError(InherituneError):
    """The text, tokens or shards cannot be used."""


class PlanError(InherituneError):
    """A layer plan does not fit its source model."""


class RecipeError(InherituneError):
    """A recipe has unknown keys, wrong types or values that contradict each other."""


class OutputError(InherituneError):
    """The output folder cannot be written or holds something else."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the closest of `choices`, or an empty string if none is close."""
    close = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def unknown_name(kind: str, name: str, choices: Iterable[str]) -> str:
    """Return the line for an unknown name: what was passed, all valid choices and the nearest one."""
    known = sorted(choices)
    return f"unknown {kind} {name!r}: expected one of {', '.join(known)}{nearest(name, known)}"
