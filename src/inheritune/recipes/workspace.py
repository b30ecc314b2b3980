"""What the rounds of one run share: its folder, data, reference, fixed validation windows, and their configuration."""

import copy
import re
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from inheritune.data.prepare import prepare
from inheritune.data.shards import Shards
from inheritune.data.tokenizer import TRAIN_PREFIX, check_same_vocabulary, document_mark
from inheritune.data.windows import TrainingWindows, read_tokens, tuning_windows, validation_windows, window_documents
from inheritune.decoder import count_parameters, load_config, load_model, load_tokenizer, save_model
from inheritune.decoder.source import model_identity, resolve_model
from inheritune.decoder.view import on_accelerator
from inheritune.distributed import count_processes, from_main, is_main
from inheritune.errors import DataError, InherituneError, OutputError, PlanError, RecipeError, library_errors, nearest
from inheritune.evaluation import compare, evaluate_windows, window_losses
from inheritune.evaluation.loss import Evaluation
from inheritune.evaluation.paired import check_settings, count_groups, few_documents, mean_error
from inheritune.evaluation.windows import context_of, open_tokenizer
from inheritune.progress import note
from inheritune.recipes.schema import Recipe, RecipeTraining
from inheritune.records.base import read_record
from inheritune.records.evaluation import Comparison
from inheritune.records.runs import ReferenceRecord, RoundRecord, TrainedOn
from inheritune.storage import missing_folders, remove_made, user_path, written_file
from inheritune.surgery import blueprint
from inheritune.surgery.config.target import depth_of
from inheritune.surgery.repair import WINDOW_LENGTH, WINDOWS
from inheritune.training import TrainingSettings
from inheritune.training.engine import share_batch, teaches_in_bfloat16

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
        home: where what runs on the same data with the same reference share is written; mostly `folder`.
        shards: the tokens.
        config: the configuration of the reference, or of the recipe's architecture.
    """

    recipe: Recipe
    training: TrainingSettings
    folder: Path
    home: Path
    shards: Shards
    config: PretrainedConfig

    def branch(self, recipe: Recipe, folder: Path) -> Self:
        """Return the workspace of another run on the same data with the same reference, sharing all that was made."""
        made = copy.copy(self)
        made.__dict__.update(recipe=recipe, folder=folder)
        return made

    def load_round(self, record: RoundRecord) -> PreTrainedModel:
        """Load the model that a round left behind, float32, in evaluation mode, on the accelerator if there is one."""
        return on_accelerator(load_model(self.folder / record.model, dtype="float32"))

    def save(self, model: PreTrainedModel, folder: Path, tokens: int) -> None:
        """Save a model, as it is, with its tokenizer and the number of tokens that it was trained on, in all rounds."""
        trained = TrainedOn(tokens=tokens, recipe=self.recipe.name, method=self.recipe.method)
        save_model(model, folder, self.tokenizer, finish=lambda place: trained.write(place / TRAINING_RECORD))

    @cached_property
    def reference(self) -> PreTrainedModel:
        """The reference, likewise."""
        return on_accelerator(load_model(str(self.recipe.reference), dtype="float32"))

    @cached_property
    def teacher(self) -> PreTrainedModel:
        """The reference as it teaches: in bfloat16 where the target is trained in it on an accelerator."""
        if not teaches_in_bfloat16(self.training):
            return self.reference
        return on_accelerator(load_model(str(self.recipe.reference), dtype="bfloat16"))

    @property
    def depth(self) -> int:
        """The number of layers of the reference, or of the architecture."""
        return depth_of(self.config)

    @property
    def source_dtype(self) -> str:
        """The dtype that the reference's weights are stored in, for example `bfloat16`."""
        return str(getattr(self.config, "dtype", None) or "float32").removeprefix("torch.")

    @property
    def save_dtype(self) -> str:
        """The dtype that the result's weights are stored in, likewise."""
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

    @cached_property
    def documents(self) -> np.ndarray:
        """The first and the last document of each window, (N, 2) int64."""
        tokens, length = read_tokens(self.shards, self.tokenizer), self.windows.shape[1] - 1
        return window_documents(tokens, document_mark(self.tokenizer), length, len(self.windows), self.shards)

    @property
    def repair_windows(self) -> np.ndarray:
        """Windows of training text that a repair is fitted to, (N, T) int64."""
        length = min(self.training.length, WINDOW_LENGTH)
        return tuning_windows(self.shards, self.tokenizer, length - 1, WINDOWS)

    @property
    def text(self) -> str:
        """What the windows are made of, in words."""
        return f"{self.recipe.data.validation or self.recipe.data.source} (validation)"

    def evaluate(self, model: PreTrainedModel) -> Evaluation:
        """Evaluate `model` on the fixed windows, in the first process; all processes have to call this."""
        windows, documents = self.windows, self.documents
        return from_main(lambda: evaluate_windows(on_accelerator(model), windows, self.text, documents=documents))

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
        identity, stored = model_identity(name), self.home / REFERENCE_LOSSES
        with suppress(OutputError, OSError, ValueError, EOFError):
            record, losses = self.reference_record(), np.load(stored, allow_pickle=False)
            if record.identity == identity and losses.shape == (len(self.windows),):
                return Evaluation(losses, self.windows.shape[1] - 1, self.text, self.documents)
        evaluation = self.evaluate(self.reference)
        save_windows(stored, evaluation.losses)
        trained = Path(resolve_model(name)) / TRAINING_RECORD
        ReferenceRecord(
            model=name,
            name=Path(name).name,
            layers=self.depth,
            parameters=count_parameters(self.reference),
            tokens=read_record(trained, TrainedOn).tokens if trained.is_file() else None,
            evaluation=evaluation.summary,
            identity=identity,
        ).write(self.home / REFERENCE_RECORD)
        return evaluation

    def reference_record(self) -> ReferenceRecord:
        """Return what `reference_evaluation` wrote of the reference; an `OutputError` where it is damaged."""
        return read_record(self.home / REFERENCE_RECORD, ReferenceRecord)

    def compare(self, evaluation: Evaluation) -> Comparison | None:
        """Test an evaluation against the reference's, window by window."""
        if self.reference_evaluation is None:
            return None
        settings = self.recipe.evaluation
        reference = self.reference_evaluation.losses
        return compare(evaluation.losses, reference, settings.margin, settings.confidence, self.documents)


def open_workspace(recipe: Recipe, folder: Path, config: PretrainedConfig) -> Workspace:
    """Prepare the data and return the workspace of a recipe that was checked against `config`.

    What the text does not allow is refused before anything is trained; shards that were made for it are given back.

    Raises:
        InherituneError: the data cannot be used, or not with the reference; one line.
    """
    data = recipe.data
    place = user_path(data.folder) if data.folder else folder / DATA
    tokenizer = data.tokenizer or str(recipe.reference)
    how = data.model_dump(exclude={"source", "tokenizer", "folder"})
    missing = missing_folders(place)
    shards = from_main(lambda: prepare(data.source, place, tokenizer, **how))
    try:
        return _workspace_of(recipe, folder, shards, config)
    except InherituneError:
        if shards.new and is_main():
            remove_made(place, missing)
        raise


def _workspace_of(recipe: Recipe, folder: Path, shards: Shards, config: PretrainedConfig) -> Workspace:
    if recipe.reference is None:
        config = recipe_config(recipe, shards.vocabulary, load_tokenizer(shards.tokenizer).eos_token_id)
    else:
        tokenizers = (open_tokenizer(recipe.reference), open_tokenizer(str(shards.tokenizer)))
        check_same_vocabulary([held for held in tokenizers if held is not None])
    if shards.vocabulary > (known := config.get_text_config(decoder=True).vocab_size):
        raise DataError(f"{shards.folder} has {shards.vocabulary} token ids: expected at most the model's {known}")
    training = recipe.training.resolved(context_of(config), shards.tokens("train"), shards.tokens("valid"))
    share_batch(training, count_processes())  # a batch that cannot be shared out is refused
    settled = recipe.model_copy(update={"training": RecipeTraining(**training.model_dump())})
    workspace = Workspace(settled, training, folder, folder, shards, config)
    TrainingWindows(shards, training.length, 1, recipe.seed, training.order)  # too little text is refused
    if recipe.reference is not None:
        settings, documents = recipe.evaluation, workspace.documents
        check_settings(len(workspace.windows), settings.margin, settings.confidence, documents)
        freedom = mean_error(np.zeros(len(documents)), documents)[1]
        if few := few_documents(count_groups(documents), freedom):
            note(f"weak evidence: the validation windows are of {few}")
    return workspace


def save_windows(path: Path, values: np.ndarray) -> None:
    """Write what each of N windows has, its loss or its documents, so that runs on the same ones can be compared."""
    with written_file(path) as file:
        np.save(file, values)


def recipe_config(recipe: Recipe, vocabulary: int | None = None, end: int | None = None) -> PretrainedConfig:
    """Return the configuration of the reference, or of the architecture that the recipe describes.

    `plan` and `run` both ask here, so that both see one model and refuse the same mistakes. An architecture that names
    none of its own gets the number of token ids of the text, `vocabulary`, and the id of its end-of-text token, `end`;
    the number is that of the tokenizer that the recipe trains, if it trains one, where it is not known yet.

    Raises:
        ModelError: the reference cannot be read.
        RecipeError: the model type or a field of the architecture is unknown, or its values contradict each other.
    """
    if recipe.reference is not None:
        return load_config(recipe.reference)
    if vocabulary is None and (trained := re.fullmatch(rf"{TRAIN_PREFIX}(\d+)", recipe.data.tokenizer or "")):
        vocabulary = int(trained[1])
    tokens = {"vocab_size": vocabulary, "bos_token_id": end, "eos_token_id": end}
    return _described({key: value for key, value in tokens.items() if value is not None} | (recipe.architecture or {}))


def _described(architecture: dict[str, Any]) -> PretrainedConfig:
    """Return the transformers configuration with these fields; `model_type` says of which family."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = str(architecture.pop("model_type", ""))
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        hint = nearest(kind, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
        what = f"architecture.model_type {kind!r} is no decoder language model of transformers"
        raise RecipeError(f"{what}: expected gpt2, say{hint}")
    plain = CONFIG_MAPPING[kind]()
    known = {*plain.to_dict(), *plain.attribute_map}
    if unknown := [key for key in architecture if key not in known]:
        hint = nearest(unknown[0], known)
        raise RecipeError(f"architecture: {unknown[0]!r} is no field of a {kind} configuration{hint}")
    try:
        with library_errors("architecture", kind=RecipeError):
            config = CONFIG_MAPPING[kind](**architecture)
            blueprint(config)  # builds no weights; values that contradict each other come to light here
    except PlanError as error:
        raise RecipeError(f"architecture: {error}") from error
    return config
