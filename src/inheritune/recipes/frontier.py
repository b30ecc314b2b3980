"""`inheritune.frontier`: several depths from one reference, each trained alike, and what each costs.

The text, the prices of the layers and the reference's losses are made once. Each depth is a run in a folder of its own,
`depth-N`, the deepest first, as those may match. Speed is measured last, each model in turns with the reference.
"""

import gc
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from inheritune.distributed import from_main, is_main
from inheritune.evaluation import compare_speed
from inheritune.evaluation.generation import loaded
from inheritune.layers import plural
from inheritune.progress import note
from inheritune.recipes.depths import given_prices, recipes_by_depth
from inheritune.recipes.loading import load_recipe
from inheritune.recipes.methods import method_of
from inheritune.recipes.preflight import check_recipe
from inheritune.recipes.runner import complete, measured_prices, recall_layers
from inheritune.recipes.schema import Recipe, RecommendedLayers
from inheritune.recipes.workspace import DATA, Workspace, open_workspace, recipe_config
from inheritune.records.base import environment, now, read_record
from inheritune.records.evaluation import Comparison, Speed, SpeedRatio
from inheritune.records.runs import FrontierPoint, FrontierRecord, RoundRecord, RunRecord
from inheritune.spectra.folder import PRICES
from inheritune.storage import FRONTIER, check_folder, claimed, user_path
from inheritune.surgery import LayerPlan
from inheritune.surgery.config.target import depth_of


def frontier(
    recipe: Recipe | Mapping[str, Any] | str | Path, out: str | Path | None = None, changes: Iterable[str] = ()
) -> FrontierRecord:
    """Train several depths from one reference on as many tokens each, and say what each costs.

    One that was stopped goes on where it was; one that is done returns its record, which is `frontier.json` in the
    folder. A recipe that names no depths gets those of `FrontierSettings`.

    Args:
        recipe: as for `run`; `frontier.depths` says which depths.
        out: the folder; `runs/NAME` when None.
        changes: `key=value` settings on top, see `load_recipe`.

    Raises:
        InherituneError: a depth is not there, or as `run`; one line.
    """
    checked = load_recipe(recipe, changes)
    if checked.frontier is None:
        checked = load_recipe({**checked.as_json(), "frontier": {}})
    folder = user_path(out) if out is not None else Path("runs") / checked.name
    checked = recall_layers(checked, folder)
    identity = {"kind": FrontierRecord.KIND, "recipe": checked.as_json()}
    from_main(lambda: check_folder(folder, identity))
    if (folder / FRONTIER).is_file():
        return read_record(folder / FRONTIER, FrontierRecord)
    config, prices = recipe_config(checked), given_prices(checked, folder)
    split = recipes_by_depth(checked, depth_of(config), prices)
    for each in split:
        check_recipe(each)
    with claimed(folder, identity, preparation=(DATA,)) if is_main() else nullcontext():
        workspace = open_workspace(checked, folder, config)
        if prices is not None:
            from_main(partial(prices.write, folder / PRICES))  # to go on without the analysis
        elif method_of(checked).chooses:
            prices = measured_prices(workspace, int(str(split[-1].keep)))
        runs = _run_depths(workspace, recipes_by_depth(workspace.recipe, workspace.depth, prices))
        return from_main(lambda: _finish(workspace, runs, prices is not None))


def _run_depths(workspace: Workspace, recipes: Sequence[Recipe]) -> dict[str, RunRecord]:
    """Run each depth that is not done yet, and return the records of all by their folders."""
    runs = {}
    for number, recipe in enumerate(recipes, 1):
        plan = method_of(recipe).first_plan(recipe, workspace.depth)
        name, taken = f"depth-{len(plan)}", plan.reference_layers
        which = f", layers {taken} of the reference" if method_of(recipe).chooses else ""
        note(f"{recipe.name}: {number} of {plural(len(recipes), 'depth')}{which}")
        for line in recipe.layers.warnings() if isinstance(recipe.layers, RecommendedLayers) else ():
            note(f"{recipe.name}: {line}")
        settings = recipe.evaluation.model_copy(update={"speed": False})
        settled = recipe.model_copy(update={"evaluation": settings})
        runs[name] = complete(workspace.branch(settled, workspace.folder / name))
        test = cast(Comparison, runs[name].result.comparison)  # a frontier has a reference
        note(f"{recipe.name}: {test.difference:+.4f} nats a token to the reference")
        gc.collect()  # the trained model, which refers to itself
    return runs


def _finish(workspace: Workspace, runs: Mapping[str, RunRecord], priced: bool) -> FrontierRecord:
    """Measure the speeds, where the recipe wants them, and write the record, last."""
    settings, speeds = workspace.recipe.evaluation, dict[str, tuple[Speed, Speed, SpeedRatio]]()
    if settings.speed:
        whole = loaded(str(workspace.recipe.reference))
        for name, run in runs.items():
            note(f"{run.name}: speed, in turns with the reference")
            saved = workspace.folder / name / str(run.result.model)
            speeds[name] = compare_speed(saved, whole, confidence=settings.confidence)
    theirs = next((speed for _, speed, _ in speeds.values()), None)
    reference = workspace.reference_record().model_copy(update={"speed": theirs})
    return FrontierRecord(
        name=workspace.recipe.name,
        trained=next(iter(runs.values())).trained,
        recipe=workspace.recipe.as_json(),
        environment=environment(),
        created=now(),
        reference=reference,
        reference_bytes=_weight_bytes(reference.parameters, workspace.source_dtype),
        prices=PRICES if priced else None,
        points=tuple(_point(name, run, speeds.get(name)) for name, run in runs.items()),
    ).write(workspace.folder / FRONTIER)


def _point(folder: str, run: RunRecord, speeds: tuple[Speed, Speed, SpeedRatio] | None) -> FrontierPoint:
    result = run.result
    return FrontierPoint(
        run=folder,
        layers=result.layers,
        kept=LayerPlan.from_records(run.rounds[0].plan or ()).reference_layers,
        parameters=result.parameters,
        weight_bytes=_weight_bytes(result.parameters, result.dtype or "float32"),
        tokens=sum(map(_spent, run.rounds)),
        untrained=run.rounds[0].start_evaluation,
        evaluation=result.evaluation,
        comparison=cast(Comparison, result.comparison),
        tokens_to_match=_tokens_to_match(run),
        speed=speeds and speeds[0],
        speed_ratio=speeds and speeds[2],
    )


def _spent(done: RoundRecord) -> int:
    """Return the tokens of a round, those of all branches of its curve counted."""
    return done.curve[-1].tokens_spent if done.curve else done.tokens


def _tokens_to_match(run: RunRecord) -> int | None:
    """Return the tokens spent up to the first point that matches; the last is the result as it is saved."""
    *before, last = run.rounds
    earlier = sum(map(_spent, before))
    ends = [(earlier + point.tokens_spent, point.comparison) for point in last.curve[:-1]]
    ends.append((earlier + _spent(last), run.result.comparison))
    return next((tokens for tokens, test in ends if test is not None and test.matches), None)


def _weight_bytes(parameters: int, dtype: str) -> int:
    """Return the bytes of so many weights of a dtype such as `bfloat16`."""
    return parameters * int(getattr(torch, dtype).itemsize)
