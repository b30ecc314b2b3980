"""The mean of the weights of a round's last steps: what a falling learning rate does to the noise, without waiting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from typing_extensions import override

AVERAGE = "average.safetensors"
"""The file of a checkpoint that holds the mean so far."""


class TailAverage(TrainerCallback):
    """Keeps a running mean of the weights, float32, over all steps behind step `first`."""

    def __init__(self, first: int, checkpoint: Path | None) -> None:
        """Begin behind step `first`, or go on from what a checkpoint holds."""
        self.first, self.means = first, dict[str, torch.Tensor]()
        if checkpoint is not None and (checkpoint / AVERAGE).is_file():
            self.means = load_file(checkpoint / AVERAGE)

    @override
    @torch.no_grad()
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        count = state.global_step - self.first
        for name, weight in kw["model"].named_parameters() if count > 0 else ():
            mean = weight.float() if count == 1 else self.means[name].to(weight.device)
            self.means[name] = mean.clone() if count == 1 else mean.lerp_(weight.float(), 1 / count)

    def save(self, checkpoint: Path) -> None:
        """Write the mean so far into a checkpoint."""
        if self.means:
            save_file(self.means, checkpoint / AVERAGE)

    @torch.no_grad()
    def apply(self, model: PreTrainedModel) -> None:
        """Give the model the mean of its weights."""
        for name, weight in model.named_parameters():
            weight.copy_(self.means[name])
