"""The whole story on one machine, with no downloads: a deep model, what its layers cost, and a smaller one.

The reference ships with the package. Our way is trained here: the layers that cost least are left out, and the rest
learns from the reference's logits. Beside it stand the paper's own Inheritune and a model of the same depth trained
from scratch, each on as many tokens: as records that ship with the package, or trained here too (`live`).

`ship_...` copy what ships of finished runs, with `assets` as the place, for whoever makes a release: `ship_baselines`
takes the folder of `inheritune quickstart --live`, `ship_frontier` that of `frontier stdlib-frontier`, and `ship_run`
with `model` that of `run stdlib-small`.
"""

import shutil
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

from inheritune.recipes import load_recipe, run
from inheritune.records.base import environment, now, read_record
from inheritune.records.runs import FrontierRecord, QuickstartRecord, RunRecord
from inheritune.report import load_runs, verdict, write_report
from inheritune.storage import FRONTIER, RECORD, claimed, user_path, whole_folder

BASELINES = ("inheritune", "scratch")
_AGAIN = "shipped with the package; inheritune {} trains it again (made {})"
LOGGING = {"log_every": 10, "valid_every": 250, "checkpoint_every": 150}
MEASURED: dict[str, Any] = {
    "learning_rate": 2e-3, "schedule": "linear", "warmup_steps": 50, "weight_decay": 0.0, "optimizer": "muon",
}  # fmt: skip
"""Of our way: the rate falls to nothing, and no decay pulls the weights away from those that are inherited. Muon and no
decay were better on the windows that choose (docs/results/match.md)."""
COSINE: dict[str, Any] = {"schedule": "cosine", "weight_decay": 0.1, "optimizer": "adamw"}
PAPER = {**COSINE, "learning_rate": 2e-3, "min_learning_rate": 4e-5, "warmup_steps": 30}
"""Of a round of Algorithm 1."""
FROM_RANDOM = {**COSINE, "learning_rate": 6e-3, "min_learning_rate": 6e-5, "warmup_steps": 200}
"""The rates the reference itself was trained with, for a shorter run: random weights take a higher rate than inherited
ones, and a longer warm-up."""


def measured_recipe(folder: Path) -> dict[str, Any]:
    """Return the recipe of our way: three quarters of the bundled reference's layers, chosen by what they cost."""
    return {
        "name": "measured",
        "method": "inheritune",
        "reference": "stdlib",
        "keep": "75%",
        "objective": "kl",
        "data": {"source": "stdlib", "folder": str(folder / "data")},
        "training": {"steps": 1650, "batch": 16, "length": 128, **MEASURED, **LOGGING},
        "growth": {"max_rounds": 1},
        "evaluation": {"windows": 2000, "prompt": "def "},
    }


def paper_recipe(record: RunRecord) -> dict[str, Any]:
    """Return Algorithm 1 for a finished run: from the first half, two layers at a time to its depth, on as many tokens.

    A reference too shallow for that is cut once.
    """
    depth = record.reference.layers if record.reference else record.result.layers
    start, by = min(depth // 2, record.result.layers), 2
    rounds = 1 + (record.result.layers - start + by - 1) // by
    steps = sum(item.steps for item in record.rounds) // rounds
    return {
        **_baseline(record, "inheritune", {**PAPER, "steps": max(steps, 1)}),
        "layers": start,
        "growth": {"by": by, "max_layers": record.result.layers, "max_rounds": rounds},
    }


def scratch_recipe(record: RunRecord) -> dict[str, Any]:
    """Return the baseline of a finished run: as deep, on as many tokens, from random weights.

    It has the learning rate and a warm-up as the reference was trained with, and one schedule over all its steps.
    """
    steps = sum(item.steps for item in record.rounds)
    recipe = _baseline(record, "scratch", {**FROM_RANDOM, "steps": steps})
    return {**{key: value for key, value in recipe.items() if key != "growth"}, "layers": record.result.layers}


def _baseline(record: RunRecord, method: str, training: dict[str, Any]) -> dict[str, Any]:
    """Return a finished run's recipe with another method, named like it, that learns from the text alone."""
    recipe = record.recipe
    analysis = recipe["analysis"] and {**recipe["analysis"], "of": ["result"]}
    changes = {"name": method, "method": method, "keep": None, "drop": None, "objective": None}
    return {**recipe, **changes, "analysis": analysis, "training": {**recipe["training"], **training}}


def quickstart(
    out: str | Path = "runs/quickstart", changes: Iterable[str] = (), live: bool = False
) -> QuickstartRecord:
    """Run the quickstart in the folder `out` and return its record; run again, it goes on where it was.

    Args:
        out: gets the shards, one folder a run, `report.html` and `record.json`.
        changes: `key=value` settings of our recipe; the baselines follow it, and are trained here.
        live: train the baselines here, in place of the records that ship with the package.

    Raises:
        InherituneError: `out` holds something else, or a setting is wrong.
    """
    folder, changes = user_path(out), [*changes]
    recipe, live = load_recipe(measured_recipe(folder), changes), live or bool(changes)
    with claimed(folder, {"kind": "quickstart", "recipe": recipe.as_json(), "live": live}, preparation=("data",)):
        ours = run(recipe, folder / "measured")
        if live:
            baselines = [run(paper_recipe(ours), folder / "inheritune"), run(scratch_recipe(ours), folder / "scratch")]
        else:
            places = [_copied(name, folder / name, RECORD) for name in BASELINES]
            baselines = [read_record(place / RECORD, RunRecord) for place in places]
        folders = [folder / name for name in ("measured", *BASELINES)]
        pages = folders if live else [*folders, _copied("frontier", folder / "frontier", FRONTIER)]
        report = write_report(pages, folder / "report.html")
        return QuickstartRecord(
            created=now(),
            environment=environment(),
            runs=("measured", *BASELINES),
            report=report.name,
            verdict=verdict(load_runs(folders)).sentence,
            result=ours.result,
            inheritune=baselines[0].result,
            scratch=baselines[1].result,
        ).write(folder / RECORD)


def _copied(name: str, place: Path, record: str) -> Path:
    """Copy what the package ships, a record with what belongs to it, into the folder of the quickstart; return it."""
    if not (place / record).is_file():
        shipped = resources.files("inheritune") / "assets" / "quickstart" / name
        with resources.as_file(shipped) as source, whole_folder(place) as temporary:
            shutil.copytree(source, temporary, dirs_exist_ok=True)
    return place


def ship_frontier(finished: Path, assets: Path) -> None:
    """Copy the record of the recipe `stdlib-frontier`, run in the folder `finished`, to where `quickstart` looks."""
    held = read_record(finished / FRONTIER, FrontierRecord)
    with whole_folder(assets / "frontier", replace=True) as place:
        shipped = _AGAIN.format("frontier stdlib-frontier", held.created)
        held.model_copy(update={"shipped": shipped}).write(place / FRONTIER)


def ship_baselines(finished: Path, assets: Path) -> None:
    """Copy what a report needs of the baselines of a `live` quickstart, without models, to where `quickstart` looks."""
    for name in BASELINES:
        ship_run(finished / name, assets / name, "quickstart --live")


def ship_run(finished: Path, place: Path, again: str, model: bool = False) -> None:
    """Copy what a report needs of a finished run, and its model if asked, to where the package keeps it.

    Args:
        finished: folder of the run.
        place: new folder, or that of an earlier copy.
        again: the inheritune command that makes it again.
        model: whether the result's model is copied.
    """
    record = read_record(finished / RECORD, RunRecord)
    rounds = tuple(each.model_copy(update={"collapse": None}) for each in record.rounds)
    kept = record.result.model if model else None
    with whole_folder(place, replace=True) as temporary:
        documents = record.data.documents if record.data else None
        for file in filter(None, [*(each.metrics for each in rounds), record.result.losses, documents]):
            (temporary / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(finished / file, temporary / file)
        if kept is not None:
            shutil.copytree(finished / kept, temporary / kept)
        changes = {
            "rounds": rounds,
            "result": record.result.model_copy(update={"analysis": None, "model": kept}),
            "shipped": _AGAIN.format(again, record.created),
            "environment": record.environment.model_copy(update={"command": None}),
        }
        record.model_copy(update=changes).write(temporary / RECORD)
