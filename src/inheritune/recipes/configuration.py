"""The configuration that a recipe's models are built from: the reference's, or the one that `architecture` describes.

`plan` and `run` both ask here, so that both see one model and refuse the same mistakes.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from inheritune.data.tokenizer import TRAIN_PREFIX
from inheritune.decoder import load_config
from inheritune.errors import PlanError, RecipeError, library_errors, nearest
from inheritune.recipes.schema import Recipe
from inheritune.surgery import blueprint

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def recipe_config(recipe: Recipe, vocabulary: int | None = None, end: int | None = None) -> PretrainedConfig:
    """Return the configuration of the reference, or of the architecture that the recipe describes.

    Args:
        recipe: what is run.
        vocabulary: token ids of the text, for an architecture that names no number of its own; None where they are not
            known yet: those of the tokenizer that the recipe trains, if it trains one.
        end: the id of the end-of-text token, likewise.

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


def context_of(config: PretrainedConfig) -> int | None:
    """Return the greatest number of tokens of a model's input; None where its configuration names none."""
    return getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
