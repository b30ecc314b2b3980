"""How one training round is done, and its learning rate; the paper's values (App. F) where it gives one."""

import math
from bisect import bisect_left
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from inheritune.errors import RecipeError, unknown_name

WATCH_EVERY = 100
"""Steps between two looks at the attention: less than 3 % of the training time (`benchmarks/watch.py`)."""

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Settings(BaseModel):
    """A part of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ObjectiveSettings(Settings):
    """What is minimised: a name (`cross-entropy`, `kl`, or `mix`, the paper's 0.6 and 0.4), or the weights of a sum.

    null takes `cross-entropy`, for the method `distill` the mix that `distill_alpha` says.

    Attributes:
        cross_entropy: weight of the cross-entropy with the text.
        kl: weight of KL(reference || target) of the next token's probabilities.
        temperature: T, which both models' logits are divided by in the KL; the KL is multiplied by T^2, so that its
            gradient keeps its size (Hinton, arXiv 1503.02531).
        hidden: weight of the squared distance between the outputs of blocks of the target and of the reference, divided
            by the squared length of the reference's; the mean over pairs and tokens. It comes beside one of the others.
        hidden_pairs: `[block of the target, block of the reference]` each; a negative number counts from the end. None
            takes the third last of both (arXiv 2407.14679, tables 17 and 18), the first of a model that has fewer.
    """

    cross_entropy: Weight = 0.0
    kl: Weight = 0.0
    temperature: float = Field(default=1.0, ge=0.01, le=100)
    hidden: Weight = 0.0
    hidden_pairs: tuple[tuple[int, int], ...] | None = Field(default=None, min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _reads_a_name(cls, value: Any) -> Any:
        if isinstance(value, Mapping | ObjectiveSettings):
            return value
        if not isinstance(value, str):
            raise ValueError("expected a name or a mapping")
        if value not in OBJECTIVES:
            raise ValueError(unknown_name("objective", value, OBJECTIVES))
        return OBJECTIVES[value].model_dump()

    @model_validator(mode="after")
    def _trains_the_head(self) -> Self:
        if not self.cross_entropy and not self.kl:
            raise ValueError("cross_entropy and kl are both 0: expected at least one above it")
        if self.hidden_pairs is not None and not self.hidden:
            raise ValueError("hidden_pairs are given and hidden, their weight, is 0: expected more")
        if self.temperature != 1 and not self.kl:
            raise ValueError(f"temperature {self.temperature} is given and kl, which it is of, is 0: expected more")
        return self

    @property
    def needs_teacher(self) -> bool:
        """Whether the reference runs beside the target in every step of the training."""
        return self.kl > 0 or self.hidden > 0

    def pairs(self, target: int, reference: int) -> list[tuple[int, int]]:
        """Return the pairs of blocks, counted from 0, for a target and a reference of these depths.

        Raises:
            RecipeError: there is no such block.
        """
        if self.hidden_pairs is None:
            return [(max(target - 3, 0), max(reference - 3, 0))]
        for pair in self.hidden_pairs:
            for whose, block, depth in zip(("target", "reference"), pair, (target, reference), strict=True):
                if not -depth <= block < depth:
                    raise RecipeError(
                        f"objective.hidden_pairs {list(pair)}: the {whose} of {depth} layers has no block {block}, "
                        f"expected {-depth} to {depth - 1}"
                    )
        return [(ours % target, theirs % reference) for ours, theirs in self.hidden_pairs]


OBJECTIVES = {
    "cross-entropy": ObjectiveSettings(cross_entropy=1.0),
    "kl": ObjectiveSettings(kl=1.0),
    "mix": ObjectiveSettings(cross_entropy=0.6, kl=0.4),
}
"""Those that go by a name; the last is the paper's (App. D)."""


class TrainingSettings(Settings):
    """Optimiser, schedule, batch and bookkeeping of one round.

    Attributes:
        steps: optimiser steps of a round (the paper's T).
        batch: sequences of one step, over all devices.
        length: input tokens of a sequence.
        optimizer: `adamw`, or `muon`: Muon for the matrices of the blocks, AdamW for the rest.
        learning_rate: the peak.
        schedule: what the learning rate does behind the warm-up: `cosine` and `linear` fall over all steps, `constant`
            stays and falls linearly in the round's last steps (arXiv 2405.18392).
        min_learning_rate: where it ends; None takes 1e-5 for `cosine` and 0 for the others (arXiv 2502.15938).
        cooldown_share: share of a round's steps in which a `constant` rate falls; 0 lets it stay.
        cooldowns: with `constant`, earlier ends: for each number of steps a branch leaves the trunk, with its own
            cool-down, and is evaluated. One training so gives the curve of loss against tokens.
        average: the round's model is the mean of its weights after each of so many last steps; 0 takes the last ones.
        warmup_steps: steps of linear rise to the peak.
        weight_decay: on matrices and embeddings; none on norms and biases.
        beta1: decay of AdamW's first moment.
        beta2: decay of AdamW's second moment.
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

    steps: int = Field(gt=0)
    batch: int = Field(default=16, gt=0)
    length: int = Field(default=128, gt=0)
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = Field(default=3e-4, gt=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    min_learning_rate: float | None = Field(default=None, ge=0)
    cooldown_share: float = Field(default=0.2, ge=0, lt=1)
    cooldowns: tuple[Annotated[int, Field(gt=0)], ...] = ()
    average: int = Field(default=0, ge=0)
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
        if self.floor > self.learning_rate:
            raise ValueError(
                f"min_learning_rate {self.floor} is above learning_rate {self.learning_rate}: expected at most the peak"
            )
        for name in ("valid_every", "checkpoint_every"):
            if getattr(self, name) % self.log_every:
                raise ValueError(f"{name} {getattr(self, name)} is not a multiple of log_every {self.log_every}")
        if self.steps is not None and self.average > self.steps:
            raise ValueError(f"average {self.average}: expected 0 to {self.steps}, the steps")
        if self.cooldowns:
            self._check_cooldowns()
        return self

    def _check_cooldowns(self) -> None:
        """Refuse branches that would not share one trunk."""
        given = f"cooldowns {list(self.cooldowns)}"
        if self.schedule != "constant" or not self.cooldown_share:
            raise ValueError(f"{given}: expected schedule constant, and a cooldown_share above 0")
        if self.steps is None or sorted({*self.cooldowns, self.steps}) != list(self.ends):
            raise ValueError(f"{given}: expected rising numbers of steps below training.steps, {self.steps}")
        if not self._may_end_at(self.ends[0]):
            least = bisect_left(range(self.steps), True, key=self._may_end_at)
            said = f"expected {least} or more" if least < self.steps else f"expected none below {self.steps} steps"
            raise ValueError(f"{given}: {said}, with warmup_steps {self.warmup_steps} and log_every {self.log_every}")
        shortest = min(self.ends[0], *(end - self.trunk(before) for before, end in pairwise(self.ends)))
        if self.average > shortest:
            raise ValueError(f"average {self.average} with {given}: expected 0 to {shortest}, the shortest branch")

    def _may_end_at(self, first: int) -> bool:
        """Tell whether the first branch may: behind the warm-up, which it may not shorten, and a line of the log."""
        return self.trunk(first) >= max(self.warmup_steps, self.log_every) and first >= 2 * self.warmup_steps

    @property
    def floor(self) -> float:
        """Where the learning rate ends."""
        default = 1e-5 if self.schedule == "cosine" else 0.0
        return default if self.min_learning_rate is None else self.min_learning_rate

    @property
    def ends(self) -> tuple[int, ...]:
        """The steps of each model that a round makes; the last is the round's own."""
        return (*self.cooldowns, self.steps)

    @property
    def steps_spent(self) -> int:
        """The steps of a round, those of all branches counted."""
        return self.steps + sum(end - self.trunk(end) for end in self.cooldowns)

    def upto(self, steps: int) -> Self:
        """Return the settings of a round that ends at one of the `ends`, with the cool-downs before it."""
        before = tuple(end for end in self.cooldowns if end < steps)
        return self.model_copy(update={"steps": steps, "cooldowns": before})

    def trunk(self, steps: int) -> int:
        """Return the last step with the constant rate of a training of `steps` steps.

        It is one with a line in the log, as a checkpoint between two lines would split the mean that a line shows.
        """
        falling = round(self.cooldown_share * steps)
        return (steps - falling) // self.log_every * self.log_every if falling else steps

    def rate(self, step: int) -> float:
        """Return the learning rate of optimiser step `step` (0-based) as a share of the peak.

        All begin with the linear warm-up of `cosine_with_warmup`. A linear fall starts at the peak and reaches its end
        one step behind the last, so that no step learns nothing.
        """
        floor = self.floor / self.learning_rate
        if self.schedule == "cosine":
            return cosine_with_warmup(step, self.steps, self.warmup_steps, 1.0, floor)
        warmup = min(self.warmup_steps, self.steps // 2)
        if step < warmup:
            return (step + 1) / warmup
        start = self.trunk(self.steps) if self.schedule == "constant" else warmup
        done = max(step - start, 0) / max(self.steps - start, 1)
        return floor + (1 - floor) * (1 - done)

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
