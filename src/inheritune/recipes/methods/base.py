"""What a method does with a recipe: the plan of each round, the model that a round trains, and what it minimises.

A round makes the model, trains it, saves it and tests it against the reference. A finished one is never done again.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar

from transformers import PretrainedConfig, PreTrainedModel

from inheritune.data import TrainingWindows, validation_windows
from inheritune.decoder import count_parameters, open_decoder
from inheritune.distributed import from_main
from inheritune.recipes.schema import MethodSettings, Recipe
from inheritune.recipes.workspace import Workspace, save_losses
from inheritune.records.base import read_record
from inheritune.records.runs import RoundRecord
from inheritune.surgery import LayerPlan, inherit, scratch
from inheritune.training import TrainingOutcome, delete_checkpoints, next_token_loss, train
from inheritune.training.collapse import COLLAPSE
from inheritune.training.losses import Loss

ROUND_RECORD = "round.json"
WATCH_LENGTH = 100
"""Tokens of a window that the attention is watched on during training, at most: the paper's T (Sec. 2)."""


class Method(MethodSettings):
    """A way to get a trained target, as a short sequence of rounds over layer plans.

    Attributes:
        teaches: whether the reference runs beside the target in every step of the training.
    """

    teaches: ClassVar[bool] = False

    def first_plan(self, recipe: Recipe, depth: int) -> LayerPlan:
        """Return the layers that a recipe names of a reference of `depth` layers; its first half where it names none.

        Raises:
            PlanError: the layers are not there.
        """
        layers = recipe.layers if recipe.layers is not None else max(depth // 2, 1)
        return LayerPlan.from_layers(layers, depth, recipe.parts)

    def plans(self, recipe: Recipe, depth: int) -> list[LayerPlan]:
        """Return the target of each round there may be, from a reference of `depth` layers.

        Raises:
            PlanError: the layers are not there, or the method cannot train so many.
        """
        return [self.first_plan(recipe, depth)]

    def is_enough(self, last: RoundRecord) -> bool:
        """Return whether no round has to follow the round `last`, although there is another plan."""
        return False

    def scaled_config(self, recipe: Recipe, config: PretrainedConfig) -> PretrainedConfig:
        """Return the reference's configuration as the targets have it, their depth apart.

        Raises:
            PlanError: the recipe does not fit the reference.
        """
        return config

    def notes(self, recipe: Recipe, depth: int) -> list[str]:
        """Return what a user should know before running a recipe on a reference of `depth` layers, a line each."""
        return []

    def build(self, workspace: Workspace, plan: LayerPlan, before: Sequence[RoundRecord]) -> PreTrainedModel:
        """Return the model that a round trains, behind the rounds `before`, with the same weights each time.

        It is random if the plan takes nothing.
        """
        recipe = workspace.recipe
        if not plan.models:
            source = workspace.config if recipe.reference is None else workspace.reference
            return scratch(source, len(plan), recipe.seed)
        target = workspace.load_round(before[-1]) if "target" in plan.models else None
        return inherit(workspace.reference, plan=plan, target=target, seed=recipe.seed)

    def loss(self, workspace: Workspace) -> Loss:
        """Return what is minimised."""
        return next_token_loss

    def run(self, workspace: Workspace) -> list[RoundRecord]:
        """Do all rounds that are not done yet, and return the records of all."""
        rounds: list[RoundRecord] = []
        for plan in self.plans(workspace.recipe, workspace.depth):
            if rounds and self.is_enough(rounds[-1]):
                break
            build = partial(self.build, workspace, plan, rounds)
            rounds.append(run_round(workspace, rounds, plan, build, self.loss(workspace)))
            gc.collect()  # the trained model, which refers to itself
        return rounds


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
        save_losses(folder / "losses.npy", evaluation.losses)
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
