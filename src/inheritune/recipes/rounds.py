"""One round: make the model, train it, save it, test it against the reference. A finished round is never done again."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from inheritune.data import TrainingWindows, validation_windows
from inheritune.decoder import count_parameters, open_decoder, save_model
from inheritune.distributed import from_main
from inheritune.recipes.workspace import TRAINING_RECORD, Workspace, save_losses
from inheritune.records.base import read_record
from inheritune.records.evaluation import LossSummary
from inheritune.records.runs import RoundRecord, TrainedOn
from inheritune.surgery import LayerPlan
from inheritune.training import TrainingOutcome, delete_checkpoints, next_token_loss, train
from inheritune.training.collapse import COLLAPSE
from inheritune.training.losses import Loss

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROUND_RECORD = "round.json"
WATCH_LENGTH = 100
"""Tokens of a window that the attention is watched on during training, at most: the paper's T (Sec. 2)."""
Build = Callable[[], "PreTrainedModel"]


def run_round(
    workspace: Workspace,
    before: Sequence[RoundRecord],
    plan: LayerPlan | None,
    build: Build,
    loss: Loss = next_token_loss,
) -> RoundRecord:
    """Do the round behind the rounds `before`, or read its record if it is done.

    Args:
        workspace: what the rounds share.
        before: the records of the rounds before; the data goes on where they stopped.
        plan: where its layers come from, for the record; None for an architecture of the recipe's own.
        build: makes the model to train; called only if the round has to be done, and gives the same weights each time.
        loss: what is minimised.

    Raises:
        OutputError: the record of the round is damaged.
        InherituneError: as `train`.
    """
    folder = workspace.folder / f"round-{len(before) + 1}"
    if (folder / ROUND_RECORD).is_file():
        return read_record(folder / ROUND_RECORD, RoundRecord)
    model, start = _start(workspace, build)
    outcome = _train(workspace, folder, model, before, loss)
    record = _finish(workspace, folder, model, plan, before, start, outcome)
    del model
    gc.collect()
    return record


def _start(workspace: Workspace, build: Build) -> tuple[PreTrainedModel, LossSummary]:
    """Make the model of a round; its loss before the training is the first point of the curve."""
    model = build()
    return model, workspace.evaluate(model).summary


def _train(
    workspace: Workspace, folder: Path, model: PreTrainedModel, before: Sequence[RoundRecord], loss: Loss
) -> TrainingOutcome:
    """Train the model in place, on the data behind that of the rounds before."""
    settings, recipe = workspace.training, workspace.recipe
    data = TrainingWindows(
        workspace.shards,
        settings.length,
        settings.steps * settings.batch,
        seed=recipe.seed,
        order=settings.order,
        first=sum(record.steps for record in before) * settings.batch,
    )
    return train(
        model,
        data,
        settings,
        folder,
        seed=recipe.seed,
        loss=loss,
        validate=workspace.quick_loss,
        watch=watched_windows(workspace),
        description=f"{recipe.name} {open_decoder(model).layers} layers",
    )


def _finish(
    workspace: Workspace,
    folder: Path,
    model: PreTrainedModel,
    plan: LayerPlan | None,
    before: Sequence[RoundRecord],
    start: LossSummary,
    outcome: TrainingOutcome,
) -> RoundRecord:
    """Save the model, test it against the reference, and write the round's record, last."""
    tokens = sum(record.tokens for record in before) + outcome.tokens
    from_main(lambda: save_trained(workspace, model, folder / "model", tokens))
    evaluation = workspace.evaluate(model)
    record = RoundRecord(
        name=folder.name,
        layers=open_decoder(model).layers,
        parameters=count_parameters(model),
        plan=None if plan is None else tuple(plan.as_records()),
        steps=outcome.steps,
        tokens=outcome.tokens,
        seconds=outcome.seconds,
        start_evaluation=start,
        evaluation=evaluation.summary,
        comparison=workspace.compare(evaluation),
        metrics=f"{folder.name}/metrics.jsonl",
        collapse=f"{folder.name}/{COLLAPSE}" if (folder / COLLAPSE).is_file() else None,
        losses=f"{folder.name}/losses.npy",
        model=f"{folder.name}/model",
    )

    def write() -> RoundRecord:
        save_losses(folder / "losses.npy", evaluation.losses)
        record.write(folder / ROUND_RECORD)
        delete_checkpoints(folder)
        return record

    return from_main(write)


def watched_windows(workspace: Workspace) -> np.ndarray | None:
    """Return the fixed validation windows, (N, T) int64, that the attention is watched on; None to watch nothing.

    They depend on the shards and the training's settings alone: the same in every round, and in runs to be compared.
    """
    settings, shards = workspace.training, workspace.shards
    length = min(WATCH_LENGTH, settings.length, shards.tokens("valid"))
    if not settings.watch_every or length < 2:
        return None
    return validation_windows(shards, workspace.tokenizer, length - 1, settings.watch_windows)


def load_round(workspace: Workspace, record: RoundRecord) -> PreTrainedModel:
    """Load the model that a round left behind, float32."""
    return workspace.load(workspace.folder / record.model)


def save_trained(
    workspace: Workspace,
    model: PreTrainedModel,
    folder: Path,
    tokens: int,
    finish: Callable[[Path], object] = lambda folder: None,
) -> None:
    """Save a model with its tokenizer and the number of tokens it was trained on.

    Args:
        workspace: of the run.
        model: what is saved, as it is.
        folder: where; what it held is replaced.
        tokens: predicted tokens of its training, all rounds together.
        finish: adds files to the folder before it gets its name.
    """
    trained = TrainedOn(tokens=tokens, recipe=workspace.recipe.name, method=workspace.recipe.method)

    def add(place: Path) -> None:
        trained.write(place / TRAINING_RECORD)
        finish(place)

    save_model(model, folder, workspace.tokenizer, finish=add)
