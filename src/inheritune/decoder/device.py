"""Where models run: the one place that puts a model on the accelerator."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inheritune.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def on_accelerator(model: PreTrainedModel) -> PreTrainedModel:
    """Move `model` to the accelerator if there is one, and return it.

    Raises:
        ModelError: it is larger than the accelerator's free memory; the model is on the CPU then.
    """
    import torch

    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if device is None:
        return model
    try:
        model.to(device)
    except torch.OutOfMemoryError as error:
        model.to("cpu")
        size = model.get_memory_footprint() / 1e9
        raise ModelError(
            f"the model needs {size:.1f} GB, more than is free on the accelerator ({device.type}): free some, or hide "
            "the accelerator to run on the CPU (CUDA_VISIBLE_DEVICES=)"
        ) from error
    return model
