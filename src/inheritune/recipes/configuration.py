"""The configuration that a recipe's models are built from: the reference's, or the one that `architecture` describes.

`plan` and `run` both ask here, so that both see one model and refuse the same mistakes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inheritune.decoder import load_config
from inheritune.errors import PlanError, RecipeError, nearest
from inheritune.recipes.schema import Recipe
from inheritune.surgery import blueprint

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def recipe_config(recipe: Recipe, vocabulary: int | None = None, end: int | None = None) -> PretrainedConfig:
    """Return the configuration of the reference, or of the architecture that the recipe describes.

    Args:
        recipe: what is run.
        vocabulary: token ids of the text, for an architecture that names no number of its own.
        end: the id of the end-of-text token, likewise.

    Raises:
        ModelError: the reference cannot be read.
        RecipeError: the model type or a field of the architecture is unknown, or its values contradict each other.
    """
    if recipe.reference is not None:
        return load_config(recipe.reference)
    tokens = {"vocab_size": vocabulary, "bos_token_id": end, "eos_token_id": end}
    given = {key: value for key, value in tokens.items() if value is not None}
    return make_config({**given, **(recipe.architecture or {})})


def make_config(architecture: dict[str, Any]) -> PretrainedConfig:
    """Return the transformers configuration with these fields; `model_type` says of which family.

    Raises:
        RecipeError: as `recipe_config`.
    """
    from transformers import CONFIG_MAPPING

    kind = _known_type(str(architecture["model_type"]))
    fields = {key: value for key, value in architecture.items() if key != "model_type"}
    plain = CONFIG_MAPPING[kind]()
    known = {*plain.to_dict(), *plain.attribute_map}
    if unknown := [key for key in fields if key not in known]:
        hint = nearest(unknown[0], known)
        raise RecipeError(f"architecture: {unknown[0]!r} is no field of a {kind} configuration{hint}")
    try:
        config = CONFIG_MAPPING[kind](**fields)
        blueprint(config)  # builds no weights; values that contradict each other come to light here
    except PlanError as error:
        raise RecipeError(f"architecture: {error}") from error
    except Exception as error:  # whatever the configuration of a family raises over a wrong value
        reason = next(
            (line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__
        )
        raise RecipeError(f"architecture: {reason}") from error
    return config


def _known_type(kind: str) -> str:
    """Return a model type that transformers builds a decoder language model of, or raise `RecipeError`."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        hint = nearest(kind, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
        raise RecipeError(
            f"architecture.model_type {kind!r} is no decoder language model of transformers: expected gpt2, say{hint}"
        )
    return kind
