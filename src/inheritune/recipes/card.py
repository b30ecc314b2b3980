"""The model card of a run's result: the card of surgery, with the figures of the training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from inheritune.decoder.source import locate
from inheritune.errors import ModelError
from inheritune.progress import note
from inheritune.recipes.workspace import Workspace
from inheritune.records.base import environment
from inheritune.records.runs import ReferenceRecord, ResultRecord, RoundRecord
from inheritune.records.surgery import ParameterCounts
from inheritune.storage import write_text
from inheritune.surgery import LayerPlan
from inheritune.surgery.card import CARD, LICENCES, model_card, without_paths
from inheritune.surgery.files.carried import carry_files, fetch_files
from inheritune.surgery.width import describe_width


def add_card(
    workspace: Workspace, folder: Path, rounds: Sequence[RoundRecord], reference: ReferenceRecord, result: ResultRecord
) -> None:
    """Write the result's model card, and the licence files of its reference, into the result's folder."""
    plan = origins(rounds)
    if plan is None:
        return
    recipe = workspace.recipe
    try:
        place = locate(str(recipe.reference))
        fetch_files(place)
    except ModelError as error:  # the training is done: a hub that cannot be reached now must not lose it
        note(f"the result has no model card: {error}")
        return
    card = model_card(
        name=recipe.name,
        plan=plan,
        places={"reference": place},
        parameters=ParameterCounts(before=reference.parameters, after=result.parameters),
        command=environment().command or f"inheritune run {recipe.name}",
        width="" if recipe.width is None else describe_width(workspace.config, recipe.width),
        figures=figures(reference, result),
    )
    carry_files(place.folder, folder, LICENCES)
    write_text(folder / CARD, card)


def origins(rounds: Sequence[RoundRecord]) -> LayerPlan | None:
    """Return where the layers of the last round were first taken from; None for an architecture of a recipe's own."""
    plan: LayerPlan | None = None
    for record in rounds:
        if record.plan is None:
            return None
        grown = LayerPlan.from_records(record.plan)
        if plan is not None:
            grown = LayerPlan(tuple(plan.rows[row.source or 0] if row.model == "target" else row for row in grown))
        plan = grown
    return plan


def figures(reference: ReferenceRecord, result: ResultRecord) -> dict[str, str]:
    """Return what was measured, in words."""
    rows = {
        f"loss on {without_paths(result.evaluation.data)}": f"{result.evaluation.loss:.4f} nats a token",
        "the reference's loss there": f"{reference.evaluation.loss:.4f} nats a token",
        "trained on": f"{result.tokens:,} tokens",
    }
    if (test := result.comparison) is not None:
        interval = f"{test.confidence:.0%} interval {test.ci_low:+.4f} to {test.ci_high:+.4f}"
        rows["difference"] = f"{test.difference:+.4f} nats a token ({interval}, {test.windows} windows)"
    if (speed := result.speed_ratio) is not None:
        rows["speed of generation"] = (
            f"{speed.ratio:.2f} times the reference's ({speed.ci_low:.2f} to {speed.ci_high:.2f})"
        )
    return rows
