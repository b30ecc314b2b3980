"""What to train: the recipe, Inheritune's growth loop and the baselines it is compared with.

What trains is imported on first use, so that recipes are listed without torch and transformers.
"""

import importlib
from typing import TYPE_CHECKING, Any

from inheritune.recipes.loading import library, load_recipe, summary_of

if TYPE_CHECKING:
    from inheritune.recipes.methods import METHODS, Method, Recipe
    from inheritune.recipes.preflight import plan
    from inheritune.recipes.runner import run

__all__ = ["METHODS", "Method", "Recipe", "library", "load_recipe", "plan", "run", "summary_of"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = {"plan": "preflight", "run": "runner"}.get(name, "methods")  # without which a recipe knows no method
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
