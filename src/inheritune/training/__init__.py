"""How to train: settings, losses, the schedule and the engine on transformers' Trainer."""

from inheritune.training.checkpoints import delete_checkpoints
from inheritune.training.engine import TrainingOutcome, train
from inheritune.training.losses import DistillationLoss, next_token_loss
from inheritune.training.schedule import cosine_with_warmup
from inheritune.training.settings import TrainingSettings

__all__ = [
    "DistillationLoss",
    "TrainingOutcome",
    "TrainingSettings",
    "cosine_with_warmup",
    "delete_checkpoints",
    "next_token_loss",
    "train",
]
