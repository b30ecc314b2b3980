"""What the rounds of one run share: its folder, data, reference and fixed validation windows."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from inheritune.data import Shards, TrainingWindows, check_same_vocabulary, open_shards, prepare, validation_windows
from inheritune.decoder import count_parameters, load_model, load_tokenizer, save_model
from inheritune.decoder.source import model_identity, resolve_model
from inheritune.decoder.view import on_accelerator
from inheritune.distributed import from_main
from inheritune.errors import DataError, OutputError
from inheritune.evaluation import compare, evaluate_windows, window_losses
from inheritune.evaluation.loss import Evaluation
from inheritune.evaluation.paired import check_settings
from inheritune.evaluation.windows import open_tokenizer
from inheritune.recipes.configuration import context_of, recipe_config
from inheritune.recipes.schema import Recipe, RecipeTraining
from inheritune.records.base import read_record
from inheritune.records.evaluation import Comparison
from inheritune.records.runs import ReferenceRecord, RoundRecord, TrainedOn
from inheritune.surgery.config.target import depth_of
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

    def load_round(self, record: RoundRecord) -> PreTrainedModel:
        """Load the model that a round left behind, float32."""
        return self.load(self.folder / record.model)

    def save(self, model: PreTrainedModel, folder: Path, tokens: int) -> None:
        """Save a model, as it is, with its tokenizer and the number of tokens that it was trained on, in all rounds."""
        trained = TrainedOn(tokens=tokens, recipe=self.recipe.name, method=self.recipe.method)
        save_model(model, folder, self.tokenizer, finish=lambda place: trained.write(place / TRAINING_RECORD))

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

    @cached_property
    def windows(self) -> np.ndarray:
        """The fixed validation windows, (N, T + 1) int64."""
        settings = self.recipe.evaluation
        length = settings.length or self.training.length
        return validation_windows(self.shards, self.tokenizer, length, settings.windows)

    @property
    def text(self) -> str:
        """What the windows are made of, in words."""
        return f"{self.recipe.data.validation or self.recipe.data.source} (validation)"

    def evaluate(self, model: PreTrainedModel) -> Evaluation:
        """Evaluate `model` on the fixed windows, in the first process; all processes have to call this."""
        return from_main(lambda: evaluate_windows(on_accelerator(model), self.windows, self.text))

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
        """Read the reference's losses where this run has written them; else, or if they are damaged, evaluate it."""
        name = str(self.recipe.reference)
        identity, stored = model_identity(name), self.folder / REFERENCE_LOSSES
        with suppress(OutputError, OSError, ValueError, EOFError):
            record, losses = self.reference_record(), np.load(stored, allow_pickle=False)
            if record.identity == identity and losses.shape == (len(self.windows),):
                return Evaluation(losses, self.windows.shape[1] - 1, self.text)
        evaluation = self.evaluate(self.reference)
        save_losses(stored, evaluation.losses)
        trained = Path(resolve_model(name)) / TRAINING_RECORD
        ReferenceRecord(
            model=name,
            name=Path(name).name,
            layers=self.depth,
            parameters=count_parameters(self.reference),
            tokens=read_record(trained, TrainedOn).tokens if trained.is_file() else None,
            evaluation=evaluation.summary,
            identity=identity,
        ).write(self.folder / REFERENCE_RECORD)
        return evaluation

    def reference_record(self) -> ReferenceRecord:
        """Return what `reference_evaluation` wrote of the reference; an `OutputError` where it is damaged."""
        return read_record(self.folder / REFERENCE_RECORD, ReferenceRecord)

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
    data = recipe.data
    place = Path(data.folder) if data.folder else folder / DATA
    tokenizer = data.tokenizer or str(recipe.reference)
    how = data.model_dump(exclude={"source", "tokenizer", "folder"})
    shards = open_shards(from_main(lambda: prepare(data.source, place, tokenizer, **how).folder))
    if recipe.reference is None:
        config = recipe_config(recipe, shards.vocabulary, load_tokenizer(shards.tokenizer).eos_token_id)
    else:
        tokenizers = (open_tokenizer(recipe.reference), open_tokenizer(str(shards.tokenizer)))
        check_same_vocabulary([held for held in tokenizers if held is not None])
    if shards.vocabulary > (known := config.get_text_config(decoder=True).vocab_size):
        raise DataError(f"{shards.folder} has {shards.vocabulary} token ids: expected at most the model's {known}")
    training = recipe.training.resolved(context_of(config), shards.tokens("train"), shards.tokens("valid"))
    settled = recipe.model_copy(update={"training": RecipeTraining(**training.model_dump())})
    workspace = Workspace(settled, training, folder, shards, config)
    TrainingWindows(shards, training.length, 1, recipe.seed, training.order)  # too little text is refused
    if recipe.reference is not None:
        check_settings(len(workspace.windows), recipe.evaluation.margin, recipe.evaluation.confidence)
    return workspace


def save_losses(path: Path, losses: np.ndarray) -> None:
    """Write the loss of each window, (N,) float64, so that runs on the same windows can be compared in pairs."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        np.save(file, losses)
    temporary.replace(path)
