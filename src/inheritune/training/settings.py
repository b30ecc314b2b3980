"""How one training round is done, and its learning rate; the paper's values (App. F) where it gives one."""

import math
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

WATCH_EVERY = 100
"""Steps between two looks at the attention: less than 3 % of the training time (`benchmarks/watch.py`)."""


class TrainingSettings(BaseModel):
    """Optimiser, schedule, batch and bookkeeping of one round.

    Attributes:
        steps: optimiser steps of a round (the paper's T).
        batch: sequences of one step, over all devices.
        length: input tokens of a sequence.
        learning_rate: the peak.
        min_learning_rate: where the cosine ends.
        warmup_steps: steps of linear rise to the peak.
        weight_decay: on matrices and embeddings; none on norms and biases.
        beta1: AdamW's first moment.
        beta2: AdamW's second moment.
        clip: greatest norm of the gradient; 0 turns clipping off.
        order: `shuffle` (each window once an epoch) or `replacement` (drawn independently).
        precision: `float32`, `bfloat16` (autocast, float32 weights), or `auto`: bfloat16 on a GPU that has it.
        micro_batch: sequences a device takes at once; None takes the device's whole share of the batch.
        log_every: steps between two lines of `metrics.jsonl`.
        valid_every: steps between two validation losses, a multiple of `log_every`; 0 measures none but the last.
        checkpoint_every: steps between two checkpoints to resume from, a multiple of `log_every`.
        watch_every: steps between two lines of `collapse.jsonl`, beside those of the first and the last step; 0 writes
            none.
        watch_windows: fixed windows that the attention is watched on.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(gt=0)
    batch: int = Field(default=16, gt=0)
    length: int = Field(default=128, gt=0)
    learning_rate: float = Field(default=3e-4, gt=0)
    min_learning_rate: float = Field(default=1e-5, ge=0)
    warmup_steps: int = Field(default=100, ge=0)
    weight_decay: float = Field(default=0.1, ge=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    clip: float = Field(default=1.0, ge=0)
    order: Literal["shuffle", "replacement"] = "shuffle"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    micro_batch: int | None = Field(default=None, gt=0)
    log_every: int = Field(default=10, gt=0)
    valid_every: int = Field(default=100, ge=0)
    checkpoint_every: int = Field(default=200, gt=0)
    watch_every: int = Field(default=WATCH_EVERY, ge=0)
    watch_windows: int = Field(default=8, gt=0)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"min_learning_rate {self.min_learning_rate} is above learning_rate {self.learning_rate}: "
                "expected at most the peak"
            )
        for name in ("valid_every", "checkpoint_every"):
            if getattr(self, name) % self.log_every:
                raise ValueError(f"{name} {getattr(self, name)} is not a multiple of log_every {self.log_every}")
        return self

    @property
    def tokens_per_step(self) -> int:
        """Predicted tokens of one optimiser step."""
        return self.batch * self.length


def cosine_with_warmup(step: int, steps: int, warmup: int, peak: float, floor: float) -> float:
    """Return the learning rate of optimiser step `step` (0-based) of `steps`: a linear warm-up, then a cosine down.

    The warm-up's step s has `peak * (s + 1) / warmup`; the cosine starts at the peak and its last step is at `floor`.
    A warm-up longer than half the round is shortened to half of it, so that a short round still reaches its peak.
    """
    warmup = min(warmup, steps // 2)
    if step < warmup:
        return peak * (step + 1) / warmup
    done = min((step - warmup) / max(steps - 1 - warmup, 1), 1.0)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * done))
