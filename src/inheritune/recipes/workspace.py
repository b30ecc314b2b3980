"""What the rounds of one run share: its folder, data, reference and fixed validation windows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inheritune.data import Shards, open_shards, prepare, validation_windows
from inheritune.decoder import count_parameters, load_config, load_model, load_tokenizer, open_decoder
from inheritune.decoder.source import resolve_model
from inheritune.distributed import from_main
from inheritune.errors import DataError, PlanError, RecipeError
from inheritune.evaluation import Comparison, Evaluation, compare, evaluate_windows
from inheritune.evaluation.loss import window_losses
from inheritune.recipes.schema import Recipe, RecommendedLayers
from inheritune.storage import IDENTITY, read_json
from inheritune.surgery import LayerPlan
from inheritune.surgery.width import HALF, narrow_sizes

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

TRAINING_RECORD = "training.json"
"""Beside a model's weights: what it was trained on."""


@dataclass(frozen=True)
class Workspace:
    """The shared state of a run; what costs time is made on first use.

    Attributes:
        recipe: what is run.
        folder: where everything is written.
        shards: the tokens.
    """

    recipe: Recipe
    folder: Path
    shards: Shards

    @cached_property
    def reference(self) -> PreTrainedModel:
        """The reference, float32, in evaluation mode."""
        return load_model(self.reference_path, dtype="float32")

    @property
    def reference_path(self) -> str:
        """Where the reference is."""
        if self.recipe.reference is None:
            raise RecipeError(f"method {self.recipe.method} needs a reference: expected a model folder or a hub id")
        return resolve_model(self.recipe.reference)

    @cached_property
    def depth(self) -> int:
        """The number of layers of the reference."""
        return open_decoder(self.reference).layers

    @cached_property
    def plan(self) -> LayerPlan:
        """The layers that the recipe names; half of the reference's when it names none."""
        return inherited_plan(self.recipe, self.depth)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that made the shards."""
        return load_tokenizer(self.shards.tokenizer)

    @cached_property
    def windows(self) -> np.ndarray:
        """The fixed validation windows, (N, T + 1) int64."""
        settings = self.recipe.evaluation
        return validation_windows(self.shards, self.tokenizer, self.recipe.evaluation_length, settings.windows)

    @cached_property
    def reference_evaluation(self) -> Evaluation | None:
        """The reference on the fixed windows."""
        return None if self.recipe.reference is None else self.evaluate(self.reference)

    def evaluate(self, model: PreTrainedModel) -> Evaluation:
        """Evaluate `model` on the fixed windows, in the first process."""
        name = f"{self.recipe.data.validation or self.recipe.data.source} (validation)"
        return from_main(lambda: evaluate_windows(model, self.windows, name))

    def quick_loss(self, model: PreTrainedModel) -> float:
        """Return the mean loss on a few of the fixed windows, evenly spread, for the curve during training."""
        count = min(self.recipe.evaluation.training_windows, len(self.windows))
        few = self.windows[np.arange(count) * len(self.windows) // count]
        return float(window_losses(model, few).mean())

    def compare(self, evaluation: Evaluation) -> Comparison | None:
        """Test an evaluation against the reference's, window by window."""
        if self.reference_evaluation is None:
            return None
        settings = self.recipe.evaluation
        return compare(evaluation.losses, self.reference_evaluation.losses, settings.margin, settings.confidence)

    def reference_record(self) -> dict[str, Any] | None:
        """Return what the run's record says of the reference, or None."""
        if self.recipe.reference is None or self.reference_evaluation is None:
            return None
        return {
            "model": self.recipe.reference,
            "name": Path(self.recipe.reference).name,
            "layers": self.depth,
            "parameters": count_parameters(self.reference),
            "tokens": trained_tokens(Path(self.reference_path)),
            "evaluation": self.reference_evaluation.summary.as_json(),
        }


def open_workspace(recipe: Recipe, folder: Path) -> Workspace:
    """Check the recipe against its reference, prepare the data, and return the workspace.

    Everything that can be refused is refused here, before anything is trained.

    Raises:
        InherituneError: the reference, the data or the plan cannot be used; one line.
    """
    settings = recipe.data
    config = None
    if recipe.reference is not None:
        config = load_config(resolve_model(recipe.reference))
        check_against(recipe, config)
    tokenizer = settings.tokenizer or resolve_model(str(recipe.reference))
    shards_folder = Path(settings.folder) if settings.folder else folder / "data"

    def make() -> Path:
        return prepare(
            settings.source,
            shards_folder,
            tokenizer,
            validation=settings.validation,
            valid_fraction=settings.valid_fraction,
            separator=settings.separator,
            field=settings.field,
        ).folder

    shards = open_shards(from_main(make))
    if config is not None and shards.vocabulary > config.get_text_config(decoder=True).vocab_size:
        size = config.get_text_config(decoder=True).vocab_size
        raise DataError(f"{shards.folder} has {shards.vocabulary} token ids: expected at most the model's {size}")
    workspace = Workspace(recipe, folder, shards)
    _ = workspace.windows  # too few validation tokens are refused before hours of training
    return workspace


def recall_layers(recipe: Recipe, folder: Path) -> Recipe:
    """Return the recipe of the run in `folder` with the layers that the run began with, where an analysis chose them.

    A run that goes on does not ask the analysis again, which may be gone or say something else by then.
    """
    held = read_json(folder / IDENTITY).get("recipe", {}).get("layers") if (folder / IDENTITY).is_file() else None
    named = recipe.layers.analysis if isinstance(recipe.layers, RecommendedLayers) else recipe.layers
    if not isinstance(held, dict) or named is None or held.get("analysis") != named:
        return recipe
    return recipe.model_copy(update={"layers": RecommendedLayers.model_validate(held)})


def check_against(recipe: Recipe, config: PretrainedConfig) -> None:
    """Refuse, in one line, a recipe whose lengths, layers or width do not fit the reference's configuration.

    Raises:
        RecipeError: windows are longer than the context.
        PlanError: the layers are not there, or the width leaves no whole heads or units.
    """
    text = config.get_text_config(decoder=True)
    check_context(recipe, getattr(text, "max_position_embeddings", None))
    count = len(inherited_plan(recipe, int(text.num_hidden_layers)))
    if recipe.method in ("stacking", "hybrid-stacking") and count % 2:
        raise PlanError(f"{recipe.method} doubles a model, so its {count} layers must be even; try {count + 1}")
    if recipe.method == "half-width":
        narrow_sizes(config, recipe.width or HALF)


def inherited_plan(recipe: Recipe, depth: int) -> LayerPlan:
    """Return the layers that a recipe names of a reference of `depth` layers; the first half when it names none.

    `half-width` takes all.

    Raises:
        PlanError: the layers are not there.
    """
    if recipe.method == "half-width":
        return LayerPlan.first(depth, depth)
    layers = recipe.layers if recipe.layers is not None else max(depth // 2, 1)
    return LayerPlan.from_layers(layers, depth, recipe.parts)


def check_context(recipe: Recipe, context: int | None) -> None:
    """Refuse windows that are longer than a model's context.

    Raises:
        RecipeError: a training or validation window is too long.
    """
    longest = max(recipe.training.length, recipe.evaluation_length)
    if context and longest > context:
        raise RecipeError(f"windows of {longest} tokens: expected at most the model's context, {context}")


def trained_tokens(model_folder: Path) -> int | None:
    """Return how many tokens the model in a folder was trained on, or None where nobody wrote it down."""
    path = model_folder / TRAINING_RECORD
    return int(read_json(path)["tokens"]) if path.is_file() else None
