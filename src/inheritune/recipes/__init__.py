"""What to train: the recipe, Inheritune's growth loop and the baselines it is compared with."""

from inheritune.recipes.loading import load_recipe
from inheritune.recipes.methods import METHODS
from inheritune.recipes.runner import run
from inheritune.recipes.schema import Recipe

__all__ = ["METHODS", "Recipe", "load_recipe", "run"]
