"""`inheritune.experiments.reproduce`: a table of the paper at a scale that fits, ours beside the published numbers."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inheritune.errors import RecipeError, unknown_name
from inheritune.experiments.quickstart import FROM_RANDOM, LOGGING, PAPER
from inheritune.recipes import run
from inheritune.records.base import environment, now
from inheritune.records.runs import ReproducedRun, ReproductionRecord
from inheritune.report import write_report
from inheritune.storage import RECORD, claimed, read_json, user_path

PUBLISHED = Path(__file__).with_name("published.json")
SCALES = ("tiny",)
"""What can be run: `tiny` is for a laptop, with the bundled reference."""


@dataclass(frozen=True)
class Experiment:
    """A table of the paper as recipes.

    Attributes:
        columns: the methods, in the table's order; each is a recipe's name.
        recipes: makes the recipes of the runs in a folder.
    """

    columns: tuple[str, ...]
    recipes: Callable[[Path], list[dict[str, Any]]]


def _recipe(folder: Path, name: str, method: str, layers: int | None, steps: int, **changes: Any) -> dict[str, Any]:
    inherits = method == "inheritune"
    return {
        "name": name,
        "method": method,
        "reference": "stdlib",
        "layers": layers,
        "data": {"source": "stdlib", "folder": str(folder / "data")},
        "training": {"steps": steps, "batch": 16, "length": 128, **(PAPER if inherits else FROM_RANDOM), **LOGGING},
        "analysis": {"of": ["result"]},
        **changes,
    }


def table5(folder: Path) -> list[dict[str, Any]]:
    """Return the recipes of Table 5: the same depth from scratch, with twice the steps, and inherited.

    The target has two thirds of the reference's layers, as GPT-2 Medium's 16 of 24.
    """
    layers, steps = 10, 800
    return [
        _recipe(folder, "inheritune", "inheritune", layers, steps, growth={"max_rounds": 1}),
        _recipe(folder, "scratch", "scratch", layers, steps),
        _recipe(folder, "scratch-2x", "scratch", layers, 2 * steps),
    ]


def table2(folder: Path) -> list[dict[str, Any]]:
    """Return the recipes of Table 2: stacking, hybrid stacking and Inheritune at the same depth, and half width.

    Every column has as many tokens. Stacking has two rounds, which share them: the paper trains each of its rounds for
    as many steps as Inheritune's one, so that its stacked models see twice the tokens, and a better loss of theirs
    would say nothing of the method.
    """
    layers, steps = 10, 800
    return [
        _recipe(folder, "inheritune", "inheritune", layers, steps, growth={"max_rounds": 1}),
        _recipe(folder, "half-width", "half-width", None, steps),
        _recipe(folder, "stacking", "stacking", layers, steps // 2),
        _recipe(folder, "hybrid-stacking", "hybrid-stacking", layers, steps // 2),
    ]


EXPERIMENTS = {
    "table5": Experiment(("scratch", "scratch-2x", "inheritune"), table5),
    "table2": Experiment(("half-width", "stacking", "hybrid-stacking", "inheritune"), table2),
}


def reproduce(name: str, scale: str = "tiny", out: str | Path | None = None) -> ReproductionRecord:
    """Run a table of the paper and return ours beside the published numbers; run again, it goes on where it was.

    Args:
        name: one of `EXPERIMENTS`.
        scale: one of `SCALES`.
        out: the folder; `runs/NAME-SCALE` when None.

    Raises:
        RecipeError: the table or the scale is unknown.
    """
    if name not in EXPERIMENTS:
        raise RecipeError(unknown_name("experiment", name, EXPERIMENTS))
    if scale not in SCALES:
        raise RecipeError(unknown_name("scale", scale, SCALES))
    folder = user_path(f"runs/{name}-{scale}" if out is None else out)
    with claimed(folder, {"kind": "reproduce", "experiment": name, "scale": scale}, preparation=("data",)):
        runs = {recipe["name"]: run(recipe, folder / recipe["name"]) for recipe in EXPERIMENTS[name].recipes(folder)}
        write_report([folder / run_name for run_name in runs], folder / "report.html")
        return ReproductionRecord(
            experiment=name,
            scale=scale,
            created=now(),
            environment=environment(),
            published=read_json(PUBLISHED)[name],
            ours={
                key: ReproducedRun(**dict(record.result), reference=record.reference) for key, record in runs.items()
            },
        ).write(folder / RECORD)
