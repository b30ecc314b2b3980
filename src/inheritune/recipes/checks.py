"""What can be refused of a recipe before anything is downloaded, prepared, claimed or trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inheritune.data.tokenizer import TRAIN_PREFIX
from inheritune.errors import RecipeError
from inheritune.recipes.configuration import recipe_config
from inheritune.recipes.methods import method_of
from inheritune.recipes.schema import Recipe
from inheritune.surgery.config.fields import depth_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def check_recipe(recipe: Recipe) -> PretrainedConfig:
    """Confirm that a recipe fits its reference (or that its architecture can be built), and return the configuration.

    Raises:
        ModelError: the reference cannot be read.
        RecipeError: the architecture is wrong, or windows are longer than the model's context.
        PlanError: the layers are not there, or the method cannot train so many, or the width leaves no whole heads.
    """
    config = recipe_config(recipe, trained_vocabulary(recipe))
    method = method_of(recipe)
    method.depths(recipe, depth_of(config))
    method.scaled_config(recipe, config)
    context = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    longest = max(recipe.training.length or 0, recipe.evaluation.length or 0)
    if context and longest > context:
        raise RecipeError(f"windows of {longest} tokens: expected at most the model's context, {context}")
    return config


def trained_vocabulary(recipe: Recipe) -> int | None:
    """Return the number of token ids of a tokenizer that the recipe trains; None for one that exists already."""
    size = (recipe.data.tokenizer or "").removeprefix(TRAIN_PREFIX)
    return int(size) if size != recipe.data.tokenizer and size.isdigit() else None
