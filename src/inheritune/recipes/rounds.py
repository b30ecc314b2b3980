"""One round: make the model, train it, save it, test it against the reference. A finished round is never done again."""

import gc
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from transformers import PreTrainedModel

from inheritune.data import TrainingWindows, validation_windows
from inheritune.decoder import count_parameters, open_decoder
from inheritune.distributed import from_main
from inheritune.evaluation.loss import Evaluation
from inheritune.recipes.workspace import Workspace, save_windows
from inheritune.records.base import read_record
from inheritune.records.runs import CurvePoint, RoundRecord
from inheritune.surgery import LayerPlan
from inheritune.training import TrainingOutcome, delete_checkpoints, train
from inheritune.training.checkpoints import branch_off
from inheritune.training.collapse import COLLAPSE
from inheritune.training.losses import Loss

ROUND_RECORD, POINT = "round.json", "point.json"
COOLDOWN = "cooldown-"
"""The folders of a round's earlier ends begin with it; the number of steps follows."""
WATCH_LENGTH = 100
"""Tokens of a window that the attention is watched on during training, at most: the paper's T (Sec. 2)."""


def run_round(
    workspace: Workspace,
    before: Sequence[RoundRecord],
    plan: LayerPlan,
    build: Callable[[], PreTrainedModel],
    loss: Loss,
) -> RoundRecord:
    """Do the round behind the rounds `before`, or read its record if it is done; the data goes on where they stopped.

    `build` makes the model to train; it is called only if the round has to be done, and gives the same weights each
    time. `plan` says where its layers come from, for the record.

    Raises:
        OutputError: the record of the round is damaged.
        InherituneError: as `train`.
    """
    name = f"round-{len(before) + 1}"
    folder = workspace.folder / name
    if (folder / ROUND_RECORD).is_file():
        return read_record(folder / ROUND_RECORD, RoundRecord)
    curve = _curve(workspace, folder, build, before, loss)
    model = build().float()  # whatever its source is stored in
    start = workspace.evaluate(model).summary  # the first point of the curve
    outcome = _train(workspace, folder, model, before, loss, workspace.training.steps)
    tokens = sum(record.tokens for record in before) + outcome.tokens
    from_main(lambda: workspace.save(model, folder / "model", tokens))
    evaluation = workspace.evaluate(model)
    if curve:
        curve.append(_point(workspace, evaluation, outcome))
    record = RoundRecord(
        name=name,
        layers=open_decoder(model).layers,
        parameters=count_parameters(model),
        plan=None if workspace.recipe.reference is None else tuple(plan.as_records()),
        steps=outcome.steps,
        tokens=outcome.tokens,
        seconds=outcome.seconds,
        start_evaluation=start,
        evaluation=evaluation.summary,
        comparison=workspace.compare(evaluation),
        metrics=f"{name}/metrics.jsonl",
        collapse=f"{name}/{COLLAPSE}" if (folder / COLLAPSE).is_file() else None,
        losses=f"{name}/losses.npy",
        model=f"{name}/model",
        curve=tuple(curve),
    )

    def write() -> RoundRecord:
        save_windows(folder / "losses.npy", evaluation.losses)
        record.write(folder / ROUND_RECORD)
        for place in (folder, *folder.glob(f"{COOLDOWN}*")):
            delete_checkpoints(place)
        return record

    return from_main(write)


def _curve(
    workspace: Workspace, folder: Path, build: Callable[[], PreTrainedModel], before: Sequence[RoundRecord], loss: Loss
) -> list[CurvePoint]:
    """Train and evaluate the round's earlier ends, or read what was found of them; the arguments are `run_round`'s."""
    points = []
    for steps in workspace.training.cooldowns:
        place = folder / f"{COOLDOWN}{steps}"
        if not (place / POINT).is_file():
            model = build().float()
            outcome = _train(workspace, place, model, before, loss, steps)
            point = _point(workspace, workspace.evaluate(model), outcome)
            from_main(partial(point.write, place / POINT))
            del model
            gc.collect()  # it refers to itself
        points.append(read_record(place / POINT, CurvePoint))
    return points


def _point(workspace: Workspace, evaluation: Evaluation, outcome: TrainingOutcome) -> CurvePoint:
    """Return the point of the curve that a training ends at."""
    settings = workspace.training
    return CurvePoint(
        step=outcome.steps,
        tokens=outcome.tokens,
        tokens_spent=settings.upto(outcome.steps).steps_spent * settings.tokens_per_step,
        seconds=outcome.seconds,
        evaluation=evaluation.summary,
        comparison=workspace.compare(evaluation),
    )


def _train(
    workspace: Workspace, folder: Path, model: PreTrainedModel, before: Sequence[RoundRecord], loss: Loss, steps: int
) -> TrainingOutcome:
    """Train the model in place for `steps` steps, on the data behind that of the rounds before.

    It begins at the end of the trunk that it shares with an earlier end of the round's curve, if there is one. A trunk
    that was lost is trained again.

    The windows that its attention is watched on depend on the shards and the settings alone: they are the same in every
    round, and in runs to be compared.
    """
    settings, recipe, shards = workspace.training.upto(steps), workspace.recipe, workspace.shards
    last = steps == workspace.training.steps
    if settings.cooldowns:
        trunk = (folder if last else folder.parent) / f"{COOLDOWN}{settings.cooldowns[-1]}"
        from_main(partial(branch_off, trunk, folder))
    length, watched = min(WATCH_LENGTH, settings.length, shards.tokens("valid")), None
    if settings.watch_every and length > 1:
        watched = validation_windows(shards, workspace.tokenizer, length - 1, settings.watch_windows)
    samples, first = settings.steps * settings.batch, sum(record.steps for record in before) * settings.batch
    return train(
        model,
        TrainingWindows(shards, settings.length, samples, recipe.seed, settings.order, first),
        settings,
        folder,
        seed=recipe.seed,
        loss=loss,
        validate=workspace.quick_loss,
        watch=watched,
        description=f"{recipe.name} {open_decoder(model).layers} layers",
        branches=not last,
    )
