"""`inheritune.run`: one recipe to one folder with a record; run again, it goes on where it was."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from inheritune.distributed import from_main, is_main
from inheritune.progress import note
from inheritune.recipes.loading import load_recipe
from inheritune.recipes.methods import method_of
from inheritune.recipes.preflight import check_recipe
from inheritune.recipes.result import finish_run
from inheritune.recipes.schema import Recipe, RecommendedLayers
from inheritune.recipes.workspace import DATA, open_workspace
from inheritune.records.base import read_record
from inheritune.records.runs import RunRecord
from inheritune.storage import RECORD, check_folder, claimed, read_identity
from inheritune.surgery.config.target import depth_of


def run(
    recipe: Recipe | Mapping[str, Any] | str | Path, out: str | Path | None = None, changes: Iterable[str] = ()
) -> RunRecord:
    """Run a recipe and return its record, which is also `record.json` in the run's folder.

    A run that was stopped goes on where it was, a run that is done returns its record. On CPU a resumed run gives the
    same numbers as an uninterrupted one (times apart).

    Args:
        recipe: a recipe, its settings as a dict, a YAML file, or the name of a recipe that the package ships.
        out: the run's folder; `runs/NAME` when None.
        changes: `key=value` settings on top, see `load_recipe`.

    Raises:
        InherituneError: the recipe, its models, data or folder cannot be used; one line.
    """
    checked = load_recipe(recipe, changes)
    folder = Path(out) if out is not None else Path("runs") / checked.name
    checked = recall_layers(checked, folder)
    identity = {"kind": "run", "recipe": checked.as_json()}
    from_main(lambda: check_folder(folder, identity))
    if (folder / RECORD).is_file():
        return read_record(folder / RECORD, RunRecord)
    config = check_recipe(checked)
    method = method_of(checked)
    for line in method.notes(checked, depth_of(config)):
        note(line)
    # The first process claims for all of them: the others only write where it has been.
    with claimed(folder, identity, preparation=(DATA,)) if is_main() else nullcontext():
        workspace = open_workspace(checked, folder, config)
        return finish_run(workspace, method.run(workspace))


def recall_layers(recipe: Recipe, folder: Path) -> Recipe:
    """Return the recipe of the run in `folder` with the layers that the run began with, where an analysis chose them.

    A run that goes on does not ask the analysis again, which may be gone or say something else by then.
    """
    began = (read_identity(folder) or {}).get("recipe")
    held = began.get("layers") if isinstance(began, dict) else None
    named = recipe.layers.analysis if isinstance(recipe.layers, RecommendedLayers) else recipe.layers
    if not isinstance(held, dict) or named is None or held.get("analysis") != named:
        return recipe
    return load_recipe({**recipe.as_json(), "layers": held})
