"""One round: make the model, train it, save it, test it against the reference. A finished round is never done again."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inheritune.data import TrainingWindows, validation_windows
from inheritune.decoder import count_parameters, load_model, open_decoder, save_model
from inheritune.distributed import from_main, is_main
from inheritune.recipes.workspace import TRAINING_RECORD, Workspace, check_context
from inheritune.storage import read_json, write_json
from inheritune.surgery import LayerPlan
from inheritune.training import delete_checkpoints, next_token_loss, train
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
    number: int,
    build: Build,
    plan: LayerPlan | None,
    before: list[dict[str, Any]],
    loss: Loss = next_token_loss,
) -> dict[str, Any]:
    """Do round `number` (from 1), or read its record if it is done.

    Args:
        workspace: what the rounds share.
        number: names the folder, `round-N`.
        build: makes the model to train; called only if the round has to be done, and gives the same weights each time.
        plan: where its layers come from, for the record; None for an architecture of the recipe's own.
        before: the records of the rounds before; the data goes on where they stopped.
        loss: what is minimised.

    Returns:
        The round's record, as the run's record holds it.
    """
    name = f"round-{number}"
    folder = workspace.folder / name
    if (folder / ROUND_RECORD).is_file():
        return dict(read_json(folder / ROUND_RECORD))
    model = build()
    layers = open_decoder(model).layers
    check_context(workspace.recipe, open_decoder(model).context)
    # A random start says nothing about a target; an inherited one is what the first point of the curve shows.
    start = workspace.evaluate(model).summary.as_json()
    settings = workspace.recipe.training
    first = sum(record["steps"] for record in before) * settings.batch
    data = TrainingWindows(
        workspace.shards,
        settings.length,
        settings.steps * settings.batch,
        seed=workspace.recipe.seed,
        order=settings.order,
        first=first,
    )
    outcome = train(
        model,
        data,
        settings,
        folder,
        seed=workspace.recipe.seed,
        loss=loss,
        validate=workspace.quick_loss,
        watch=watched_windows(workspace),
        description=f"{workspace.recipe.name} {layers} layers",
    )
    trained = sum(record["tokens"] for record in before) + outcome.tokens
    _save(workspace, model, folder / "model", trained)
    evaluation = workspace.evaluate(model)
    comparison = workspace.compare(evaluation)
    from_main(lambda: _save_losses(folder / "losses.npy", evaluation.losses))
    record = {
        "name": name,
        "layers": layers,
        "parameters": count_parameters(model),
        "plan": None if plan is None else plan.as_records(),
        "steps": outcome.steps,
        "tokens": outcome.tokens,
        "seconds": outcome.seconds,
        "start_evaluation": start,
        "evaluation": evaluation.summary.as_json(),
        "comparison": None if comparison is None else comparison.as_json(),
        "metrics": f"{name}/metrics.jsonl",
        "collapse": f"{name}/{COLLAPSE}" if (folder / COLLAPSE).is_file() else None,
        "losses": f"{name}/losses.npy",
        "model": f"{name}/model",
    }
    from_main(lambda: write_json(folder / ROUND_RECORD, record))
    from_main(lambda: delete_checkpoints(folder))
    del model
    gc.collect()
    return record


def watched_windows(workspace: Workspace) -> np.ndarray | None:
    """Return the fixed validation windows, (N, T) int64, that the attention is watched on; None to watch nothing.

    They depend on the shards and the training's settings alone: the same in every round, and in runs to be compared.
    """
    settings, shards = workspace.recipe.training, workspace.shards
    length = min(WATCH_LENGTH, settings.length, shards.tokens("valid"))
    if not settings.watch_every or length < 2:
        return None
    return validation_windows(shards, workspace.tokenizer, length - 1, settings.watch_windows)


def load_round(workspace: Workspace, record: dict[str, Any]) -> PreTrainedModel:
    """Load the model that a round left behind, float32."""
    return load_model(workspace.folder / record["model"], dtype="float32")


def _save(workspace: Workspace, model: PreTrainedModel, folder: Path, tokens: int) -> None:
    """Save the model, its tokenizer and the number of tokens it was trained on."""
    if is_main():
        save_model(model, folder, workspace.tokenizer)
        recipe = workspace.recipe
        write_json(folder / TRAINING_RECORD, {"tokens": tokens, "recipe": recipe.name, "method": recipe.method})


def _save_losses(path: Path, losses: np.ndarray) -> None:
    """Keep the loss of each window, so that any two runs on the same windows can be compared in pairs."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        np.save(file, losses)
    temporary.replace(path)
