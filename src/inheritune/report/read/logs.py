"""The logs of a round, `metrics.jsonl` and `collapse.jsonl`: one line of JSON for each logged step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from inheritune.errors import OutputError
from inheritune.records.base import Record, first_problem


class Step(Record):
    """What every line has; a number that was not finite when it was logged reads as None."""

    step: int
    """Of the round, counted from 0."""
    tokens: int
    """That the round had been trained on."""


class LoggedStep(Step):
    """A line of `metrics.jsonl`; losses in nats per token."""

    loss: float | None = None
    valid_loss: float | None = None


class WatchedMask(Record):
    """The attention of each watched layer under one mask."""

    max_rank: tuple[float | None, ...]
    collapsed: tuple[float | None, ...]
    """The share of the layer's heads, 0 to 1."""


class WatchedGradients(Record):
    """Frobenius norms of each watched layer's query and key gradients."""

    query: tuple[float | None, ...]
    key: tuple[float | None, ...]


class WatchedStep(Step):
    """A line of `collapse.jsonl`; each list has an entry for each of `layers`."""

    layers: tuple[int, ...]
    causal: WatchedMask | None = None
    full: WatchedMask | None = None
    gradients: WatchedGradients | None = None


AnyStep = TypeVar("AnyStep", bound=Step)


def read_log(path: Path, kind: type[AnyStep]) -> list[AnyStep]:
    """Return the lines of a log in the order of their steps; of a step that was logged twice, the later line.

    Raises:
        OutputError: the file cannot be read, or a line is not a step.
    """
    try:
        texts = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error.strerror or error}") from error
    steps: dict[int, AnyStep] = {}
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            continue
        try:
            line = kind.model_validate(json.loads(text, parse_constant=lambda _: None))
        except ValueError as error:
            cause = first_problem(error) if isinstance(error, ValidationError) else error
            raise OutputError(f"{path} line {number} is not a logged step: {cause}") from error
        steps[line.step] = line
    return [steps[step] for step in sorted(steps)]
