"""What the package ships of finished runs: called from Python by whoever makes a release, with `assets` as the place.

`ship_baselines` takes the folder of `inheritune quickstart --live`, `ship_frontier` that of `frontier stdlib-frontier`,
and `ship_run` with `model` that of `run stdlib-small`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from inheritune.experiments.quickstart import BASELINES
from inheritune.records.base import read_record
from inheritune.records.runs import FrontierRecord, RunRecord
from inheritune.storage import FRONTIER, RECORD, whole_folder

_AGAIN = "shipped with the package; inheritune {} trains it again (made {})"


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
