"""Inheritune and its baselines (paper, Algorithm 1 and App. D), one `Method` object each.

A new method is a file here with a `Method`, and its name in the list below.
"""

from typing import cast

from inheritune.recipes.methods.base import Method
from inheritune.recipes.methods.distill import Distill
from inheritune.recipes.methods.half_width import HalfWidth
from inheritune.recipes.methods.inheritune import Inheritune
from inheritune.recipes.methods.scratch import Scratch
from inheritune.recipes.methods.stacking import HybridStacking, Stacking
from inheritune.recipes.schema import METHODS, Recipe

for method in (Inheritune(), Scratch(), Stacking(), HybridStacking(), HalfWidth(), Distill()):
    METHODS[method.name] = method


def method_of(recipe: Recipe) -> Method:
    """Return the method that a recipe names."""
    return cast(Method, METHODS[recipe.method])


__all__ = ["METHODS", "Method", "Recipe", "method_of"]
