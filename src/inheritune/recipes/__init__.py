"""What to train: the recipe, Inheritune's growth loop and the baselines it is compared with."""

from inheritune.recipes.loading import library, load_recipe, summary_of
from inheritune.recipes.methods import METHODS, Method
from inheritune.recipes.preflight import plan
from inheritune.recipes.runner import run
from inheritune.recipes.schema import Recipe

__all__ = ["METHODS", "Method", "Recipe", "library", "load_recipe", "plan", "run", "summary_of"]
