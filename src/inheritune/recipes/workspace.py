"""What the rounds of one run share: its folder, data, reference and fixed validation windows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from inheritune.data import Shards, TrainingWindows, check_same_vocabulary, open_shards, prepare, validation_windows
from inheritune.decoder import count_parameters, load_model, load_tokenizer
from inheritune.decoder.device import on_accelerator
from inheritune.decoder.source import model_identity, resolve_model
from inheritune.distributed import from_main
from inheritune.errors import DataError, OutputError
from inheritune.evaluation import compare, evaluate_windows, window_losses
from inheritune.evaluation.loss import Evaluation
from inheritune.evaluation.paired import check_settings
from inheritune.evaluation.windows import open_tokenizer
from inheritune.recipes.configuration import recipe_config
from inheritune.recipes.schema import Recipe, RecipeTraining
from inheritune.records.base import read_record
from inheritune.records.evaluation import Comparison
from inheritune.records.runs import ReferenceRecord, TrainedOn
from inheritune.surgery.config.fields import depth_of
from inheritune.training import TrainingSettings

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

DATA = "data"
"""The folder of a run's shards, where the recipe names no other."""
TRAINING_RECORD = "training.json"
"""Beside a model's weights: what it was trained on."""
REFERENCE_RECORD, REFERENCE_LOSSES = "reference.json", "reference-losses.npy"
"""The reference on the run's windows: it is evaluated once."""


@dataclass(frozen=True)
class Workspace:
    """The shared state of a run; what costs time is made on first use.

    Attributes:
        recipe: what is run; nothing is left in it to take from the model and the text.
        training: its settings of a round.
        folder: where everything is written.
        shards: the tokens.
        config: the configuration of the reference, or of the recipe's architecture.
    """

    recipe: Recipe
    training: TrainingSettings
    folder: Path
    shards: Shards
    config: PretrainedConfig

    def load(self, source: str | Path, dtype: str = "float32") -> PreTrainedModel:
        """Load a model of this run in evaluation mode, on the accelerator if there is one."""
        return on_accelerator(load_model(source, dtype=dtype))

    @cached_property
    def reference(self) -> PreTrainedModel:
        """The reference, float32, in evaluation mode."""
        return self.load(str(self.recipe.reference))

    @property
    def depth(self) -> int:
        """The number of layers of the reference, or of the architecture."""
        return depth_of(self.config)

    @property
    def source_dtype(self) -> str:
        """The dtype of the reference's weights as they are stored, for example `bfloat16`."""
        return str(getattr(self.config, "dtype", None) or "float32").removeprefix("torch.")

    @property
    def save_dtype(self) -> str:
        """The dtype that the result's weights are stored in."""
        return self.source_dtype if self.recipe.save_dtype == "source" else self.recipe.save_dtype

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that made the shards."""
        return load_tokenizer(self.shards.tokenizer)

    @property
    def length(self) -> int:
        """T, the input tokens of a validation window."""
        return self.recipe.evaluation.length or self.training.length

    @cached_property
    def windows(self) -> np.ndarray:
        """The fixed validation windows, (N, T + 1) int64."""
        return validation_windows(self.shards, self.tokenizer, self.length, self.recipe.evaluation.windows)

    @property
    def windows_name(self) -> str:
        """What the windows are made of, in words."""
        return f"{self.recipe.data.validation or self.recipe.data.source} (validation)"

    def evaluate(self, model: PreTrainedModel) -> Evaluation:
        """Evaluate `model` on the fixed windows, in the first process; all processes have to call this."""
        return from_main(lambda: self.evaluate_here(model))

    def evaluate_here(self, model: PreTrainedModel) -> Evaluation:
        """Evaluate `model` on the fixed windows, in this process."""
        return evaluate_windows(on_accelerator(model), self.windows, self.windows_name)

    def quick_loss(self, model: PreTrainedModel) -> float:
        """Return the mean loss on a few of the fixed windows, evenly spread, for the curve during training."""
        count = min(self.recipe.evaluation.training_windows, len(self.windows))
        few = self.windows[np.arange(count) * len(self.windows) // count]
        return float(window_losses(model, few).mean())

    @cached_property
    def reference_evaluation(self) -> Evaluation | None:
        """The reference on the fixed windows; all processes have to ask for it, once."""
        return None if self.recipe.reference is None else from_main(self._evaluate_reference)

    def _evaluate_reference(self) -> Evaluation:
        """Read the reference's losses, or evaluate it and write them."""
        losses = self._stored_losses()
        if losses is not None:
            return Evaluation(losses, self.length, self.windows_name)
        evaluation = self.evaluate_here(self.reference)
        save_losses(self.folder / REFERENCE_LOSSES, evaluation.losses)
        ReferenceRecord(
            model=str(self.recipe.reference),
            name=Path(str(self.recipe.reference)).name,
            layers=self.depth,
            parameters=count_parameters(self.reference),
            tokens=trained_tokens(str(self.recipe.reference)),
            evaluation=evaluation.summary,
            identity=model_identity(str(self.recipe.reference)),
        ).write(self.folder / REFERENCE_RECORD)
        return evaluation

    def _stored_losses(self) -> np.ndarray | None:
        """Return the reference's losses, (N,) float64, where this run has written them; damaged ones are made anew."""
        try:
            record = read_record(self.folder / REFERENCE_RECORD, ReferenceRecord)
            losses = np.load(self.folder / REFERENCE_LOSSES, allow_pickle=False)
        except (OutputError, OSError, ValueError, EOFError):
            return None
        same = record.identity == model_identity(str(self.recipe.reference)) and losses.shape == (len(self.windows),)
        return losses if same else None

    def compare(self, evaluation: Evaluation) -> Comparison | None:
        """Test an evaluation against the reference's, window by window."""
        if self.reference_evaluation is None:
            return None
        settings = self.recipe.evaluation
        return compare(evaluation.losses, self.reference_evaluation.losses, settings.margin, settings.confidence)


def open_workspace(recipe: Recipe, folder: Path, config: PretrainedConfig) -> Workspace:
    """Prepare the data and return the workspace; what the text does not allow is refused before anything is trained.

    Args:
        recipe: what is run, checked against `config`.
        folder: of the run.
        config: of the reference, or of the recipe's architecture.

    Raises:
        InherituneError: the data cannot be used, or not with the reference; one line.
    """
    shards = open_shards(from_main(lambda: _prepare(recipe, folder)))
    if recipe.reference is None:
        config = recipe_config(recipe, shards.vocabulary, load_tokenizer(shards.tokenizer).eos_token_id)
    else:
        _check_same_tokenizer(recipe.reference, shards)
    text = config.get_text_config(decoder=True)
    if shards.vocabulary > text.vocab_size:
        had = f"{shards.folder} has {shards.vocabulary} token ids"
        raise DataError(f"{had}: expected at most the model's {text.vocab_size}")
    context = getattr(text, "max_position_embeddings", None)
    training = recipe.training.resolved(context, shards.tokens("train"), shards.tokens("valid"))
    settled = recipe.model_copy(update={"training": RecipeTraining(**training.model_dump())})
    workspace = Workspace(settled, training, folder, shards, config)
    TrainingWindows(shards, training.length, 1, recipe.seed, training.order)  # too little text is refused
    if recipe.reference is not None:
        check_settings(len(workspace.windows), recipe.evaluation.margin, recipe.evaluation.confidence)
    return workspace


def _prepare(recipe: Recipe, folder: Path) -> Path:
    settings = recipe.data
    return prepare(
        settings.source,
        Path(settings.folder) if settings.folder else folder / DATA,
        settings.tokenizer or str(recipe.reference),
        validation=settings.validation,
        valid_fraction=settings.valid_fraction,
        separator=settings.separator,
        field=settings.field,
    ).folder


def _check_same_tokenizer(reference: str, shards: Shards) -> None:
    """Refuse shards whose tokens the reference does not know by these numbers.

    Raises:
        DataError: the shards' tokenizer and the one beside the reference differ.
    """
    tokenizers = [open_tokenizer(reference), open_tokenizer(str(shards.tokenizer))]
    check_same_vocabulary([tokenizer for tokenizer in tokenizers if tokenizer is not None])


def save_losses(path: Path, losses: np.ndarray) -> None:
    """Write the loss of each window, (N,) float64, so that runs on the same windows can be compared in pairs."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        np.save(file, losses)
    temporary.replace(path)


def trained_tokens(model: str) -> int | None:
    """Return how many tokens a model was trained on, or None where nobody wrote it down."""
    path = Path(resolve_model(model)) / TRAINING_RECORD
    return read_record(path, TrainedOn).tokens if path.is_file() else None
