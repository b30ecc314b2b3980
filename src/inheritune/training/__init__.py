"""How to train: settings, losses, the schedule and the engine on transformers' Trainer.

The engine and the losses are imported on first use, so that a recipe is read without transformers.
"""

import importlib
from typing import TYPE_CHECKING, Any

from inheritune.training.checkpoints import delete_checkpoints
from inheritune.training.settings import ObjectiveSettings, TrainingSettings, cosine_with_warmup

if TYPE_CHECKING:
    from inheritune.training.engine import TrainingOutcome, train
    from inheritune.training.losses import Objective, next_token_loss

__all__ = [
    "Objective",
    "ObjectiveSettings",
    "TrainingOutcome",
    "TrainingSettings",
    "cosine_with_warmup",
    "delete_checkpoints",
    "next_token_loss",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "losses" if name in ("Objective", "next_token_loss") else "engine"
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
