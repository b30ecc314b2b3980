"""One round: make the model, train it, save it, test it against the reference. A finished round is never done again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from inheritune.data import TrainingWindows, validation_windows
from inheritune.decoder import count_parameters, open_decoder
from inheritune.distributed import from_main
from inheritune.recipes.workspace import Workspace, save_losses
from inheritune.records.base import read_record
from inheritune.records.evaluation import LossSummary
from inheritune.records.runs import RoundRecord
from inheritune.surgery import LayerPlan
from inheritune.training import TrainingOutcome, delete_checkpoints, next_token_loss, train
from inheritune.training.collapse import COLLAPSE
from inheritune.training.losses import Loss

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROUND_RECORD = "round.json"
WATCH_LENGTH = 100
"""Tokens of a window that the attention is watched on during training, at most: the paper's T (Sec. 2)."""


def run_round(
    workspace: Workspace,
    before: Sequence[RoundRecord],
    plan: LayerPlan,
    build: Callable[[], PreTrainedModel],
    loss: Loss = next_token_loss,
) -> RoundRecord:
    """Do the round behind the rounds `before`, or read its record if it is done.

    Args:
        workspace: what the rounds share.
        before: the records of the rounds before; the data goes on where they stopped.
        plan: where its layers come from, for the record.
        build: makes the model to train; called only if the round has to be done, and gives the same weights each time.
        loss: what is minimised.

    Raises:
        OutputError: the record of the round is damaged.
        InherituneError: as `train`.
    """
    folder = workspace.folder / f"round-{len(before) + 1}"
    if (folder / ROUND_RECORD).is_file():
        return read_record(folder / ROUND_RECORD, RoundRecord)
    model = build().float()  # whatever its source is stored in
    start = workspace.evaluate(model).summary  # the first point of the curve
    outcome = _train(workspace, folder, model, before, loss)
    tokens = sum(record.tokens for record in before) + outcome.tokens
    from_main(lambda: workspace.save(model, folder / "model", tokens))
    return _finish(workspace, folder, model, plan, start, outcome)


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
        watch=_watched_windows(workspace),
        description=f"{recipe.name} {open_decoder(model).layers} layers",
    )


def _watched_windows(workspace: Workspace) -> np.ndarray | None:
    """Return the fixed validation windows, (N, T) int64, that the attention is watched on; None to watch nothing.

    They depend on the shards and the training's settings alone: the same in every round, and in runs to be compared.
    """
    settings, shards = workspace.training, workspace.shards
    length = min(WATCH_LENGTH, settings.length, shards.tokens("valid"))
    if not settings.watch_every or length < 2:
        return None
    return validation_windows(shards, workspace.tokenizer, length - 1, settings.watch_windows)


def _finish(
    workspace: Workspace,
    folder: Path,
    model: PreTrainedModel,
    plan: LayerPlan,
    start: LossSummary,
    outcome: TrainingOutcome,
) -> RoundRecord:
    """Test the model against the reference, and write the round's record, last."""
    evaluation = workspace.evaluate(model)
    record = RoundRecord(
        name=folder.name,
        layers=open_decoder(model).layers,
        parameters=count_parameters(model),
        plan=None if workspace.recipe.reference is None else tuple(plan.as_records()),
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
