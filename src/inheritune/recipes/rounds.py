"""One round: make the model, train it, save it, test it against the reference. A finished round is never done again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import PreTrainedModel

from inheritune.data import TrainingWindows, validation_windows
from inheritune.decoder import count_parameters, open_decoder
from inheritune.distributed import from_main
from inheritune.recipes.workspace import Workspace, save_windows
from inheritune.records.base import read_record
from inheritune.records.runs import RoundRecord
from inheritune.surgery import LayerPlan
from inheritune.training import TrainingOutcome, delete_checkpoints, train
from inheritune.training.collapse import COLLAPSE
from inheritune.training.losses import Loss

ROUND_RECORD = "round.json"
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
    model = build().float()  # whatever its source is stored in
    start = workspace.evaluate(model).summary  # the first point of the curve
    outcome = _train(workspace, folder, model, before, loss)
    tokens = sum(record.tokens for record in before) + outcome.tokens
    from_main(lambda: workspace.save(model, folder / "model", tokens))
    evaluation = workspace.evaluate(model)
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
    )

    def write() -> RoundRecord:
        save_windows(folder / "losses.npy", evaluation.losses)
        record.write(folder / ROUND_RECORD)
        delete_checkpoints(folder)
        return record

    return from_main(write)


def _train(
    workspace: Workspace, folder: Path, model: PreTrainedModel, before: Sequence[RoundRecord], loss: Loss
) -> TrainingOutcome:
    """Train the model in place, on the data behind that of the rounds before.

    The windows that its attention is watched on depend on the shards and the settings alone: they are the same in every
    round, and in runs to be compared.
    """
    settings, recipe, shards = workspace.training, workspace.recipe, workspace.shards
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
    )
