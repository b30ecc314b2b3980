"""The whole story on one machine, with no downloads: a deep model, where its attention collapses, and a smaller one.

The reference ships with the package. Inheritune starts from half of its layers and grows until the paired test says
that the target matches; a model of the same depth, trained from scratch on as many tokens, is the fair comparison.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from inheritune.recipes import load_recipe, run
from inheritune.records.base import environment, now
from inheritune.records.runs import QuickstartRecord, RunRecord
from inheritune.report import load_runs, verdict, write_report
from inheritune.storage import RECORD, claimed, user_path

TRAINING: dict[str, Any] = {
    "steps": 300,
    "batch": 16,
    "length": 128,
    "learning_rate": 2e-3,
    "min_learning_rate": 4e-5,
    "warmup_steps": 30,
    "log_every": 10,
    "valid_every": 50,
    "checkpoint_every": 50,
}


FROM_RANDOM = {"learning_rate": 6e-3, "min_learning_rate": 6e-5, "warmup_steps": 200}
"""The rates the reference itself was trained with, for a shorter run: random weights take a higher rate than inherited
ones, and a longer warm-up."""


def inheritune_recipe(folder: Path) -> dict[str, Any]:
    """Return the recipe of Algorithm 1 from the first half of the bundled reference, growing two layers at a time."""
    return {
        "name": "inheritune",
        "method": "inheritune",
        "reference": "stdlib",
        "data": {"source": "stdlib", "folder": str(folder / "data")},
        "training": dict(TRAINING),
        "growth": {"by": 2, "max_rounds": 4},
        "evaluation": {"windows": 2000, "prompt": "def "},
    }


def scratch_recipe(record: RunRecord) -> dict[str, Any]:
    """Return the baseline of a finished Inheritune run: as deep, on as many tokens, from random weights.

    It has the learning rate and a warm-up as the reference was trained with, and one schedule over all its steps.
    """
    recipe = {key: value for key, value in record.recipe.items() if key != "growth"}
    steps = sum(item.steps for item in record.rounds)
    return {
        **recipe,
        "name": "scratch",
        "method": "scratch",
        "layers": record.result.layers,
        "training": {**recipe["training"], **FROM_RANDOM, "steps": steps},
        "analysis": {**(recipe["analysis"] or {}), "of": ["result"]} if recipe["analysis"] else None,
    }


def quickstart(out: str | Path = "runs/quickstart", changes: Iterable[str] = ()) -> QuickstartRecord:
    """Run the quickstart in the folder `out` and return its record; run again, it goes on where it was.

    Args:
        out: gets the shards, one folder a run, `report.html` and `record.json`.
        changes: `key=value` settings of the Inheritune recipe; the baseline follows it.

    Raises:
        InherituneError: `out` holds something else, or a setting is wrong.
    """
    folder = user_path(out)
    recipe = load_recipe(inheritune_recipe(folder), changes)
    with claimed(folder, {"kind": "quickstart", "recipe": recipe.as_json()}, preparation=("data",)):
        ours = run(recipe, folder / "inheritune")
        scratch = run(scratch_recipe(ours), folder / "scratch")
        folders = [folder / "inheritune", folder / "scratch"]
        report = write_report(folders, folder / "report.html")
        return QuickstartRecord(
            created=now(),
            environment=environment(),
            runs=("inheritune", "scratch"),
            report=report.name,
            verdict=verdict(load_runs(folders)).sentence,
            result=ours.result,
            scratch=scratch.result,
        ).write(folder / RECORD)
