"""Where models run: the one place that puts a model on the accelerator."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def on_accelerator(model: PreTrainedModel) -> PreTrainedModel:
    """Move `model` to the accelerator if there is one, and return it."""
    import torch

    if torch.accelerator.is_available():
        model.to(torch.accelerator.current_accelerator())
    return model
