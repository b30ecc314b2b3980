"""A log of training on disk: JSON lines, one for each step that is worth one, which a resumed round goes on with."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from inheritune.storage import write_text

Line = dict[str, Any]


@dataclass(frozen=True)
class StepLog:
    """A file of JSON lines, each an object with its `step`. Numbers that are not finite are written as null."""

    path: Path

    def append(self, line: Line) -> None:
        """Add a line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_json(line))

    def cut_behind(self, step: int, keep: Callable[[int], bool] = lambda step: True) -> Line | None:
        """Keep the lines that an uninterrupted round would have at `step`, and return the last of them.

        A line that cannot be read is dropped: one that was being written when the process died, or a damaged one.

        Args:
            step: optimiser steps done; lines of later steps go.
            keep: says of a line's step whether an uninterrupted round has a line there.
        """
        text = self.path.read_text(encoding="utf-8", errors="replace") if self.path.is_file() else ""
        lines = [line for line in map(_parsed, text.splitlines()) if line is not None]
        kept = [line for line in lines if line["step"] <= step and keep(line["step"])]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, "".join(map(_json, kept)))
        return kept[-1] if kept else None


def _parsed(text: str) -> Line | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) and isinstance(line.get("step"), int) else None


def _json(line: Line) -> str:
    return json.dumps(to_jsonable_python(line, inf_nan_mode="null"), allow_nan=False) + "\n"
