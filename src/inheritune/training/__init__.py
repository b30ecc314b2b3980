"""How to train: settings, losses, the schedule and the engine on transformers' Trainer.

The engine and the losses are imported on first use, so that a recipe is read without transformers.
"""

import importlib
from typing import TYPE_CHECKING, Any

from inheritune.training.checkpoints import delete_checkpoints as delete_checkpoints
from inheritune.training.settings import ObjectiveSettings as ObjectiveSettings
from inheritune.training.settings import TrainingSettings as TrainingSettings
from inheritune.training.settings import cosine_with_warmup as cosine_with_warmup

if TYPE_CHECKING:
    from inheritune.training.engine import TrainingOutcome as TrainingOutcome
    from inheritune.training.engine import train as train
    from inheritune.training.losses import Objective as Objective
    from inheritune.training.losses import next_token_loss as next_token_loss

_LATER = {"TrainingOutcome": "engine", "train": "engine", "Objective": "losses", "next_token_loss": "losses"}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
