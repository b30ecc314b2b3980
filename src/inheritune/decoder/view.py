"""Where the parts of a decoder language model are, whatever its family calls them.

Nothing here is a table of families: the blocks are the one list of modules that is as long as the configuration says
the model is deep, and every other name follows from where that list is.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from inheritune.errors import ModelError

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Decoder:
    """A decoder language model and the names of its parts.

    Attributes:
        model: the whole model, with its language-model head.
        blocks: the transformer blocks, first to last.
        blocks_path: dotted name of `blocks` in the model, for example `transformer.h` or `model.layers`; the weights of
            block 3 are the state-dict keys that start with `f"{blocks_path}.3."`.
        layers_field: what the configuration calls the number of blocks, for example `n_layer`.
    """

    model: PreTrainedModel
    blocks: nn.ModuleList
    blocks_path: str
    layers_field: str

    @property
    def config(self) -> PretrainedConfig:
        """The configuration that describes the text decoder."""
        return self.model.config.get_text_config(decoder=True)

    @property
    def layers(self) -> int:
        """The number of blocks."""
        return len(self.blocks)

    @property
    def heads(self) -> int:
        """The number of query heads of a block."""
        return int(self.config.num_attention_heads)

    @property
    def context(self) -> int | None:
        """The longest sequence the model's positions allow, in tokens, or None when it has no limit."""
        limit = getattr(self.config, "max_position_embeddings", None)
        return int(limit) if limit else None

    @property
    def vocabulary(self) -> int:
        """The number of token ids the embedding has rows for (padding rows included)."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    def block_prefix(self, layer: int) -> str:
        """Return the state-dict prefix of block `layer`, for example `transformer.h.3.`."""
        return f"{self.blocks_path}.{layer}."


def open_decoder(model: PreTrainedModel) -> Decoder:
    """Find the parts of `model`.

    Raises:
        ModelError: the model is an encoder-decoder, or its blocks cannot be told from its other modules.
    """
    name = type(model).__name__
    if getattr(model.config, "is_encoder_decoder", False):
        raise ModelError(f"{name} is an encoder-decoder: expected a decoder-only language model")
    if model.get_output_embeddings() is None:
        raise ModelError(f"{name} has no language-model head: expected a ...ForCausalLM model")
    config = model.config.get_text_config(decoder=True)
    path, blocks = _find_blocks(model, config)
    field = str(config.attribute_map.get("num_hidden_layers", "num_hidden_layers"))
    if getattr(config, field) != len(blocks):
        field = next(name for name, count in _layer_counts(config) if count == len(blocks))
    return Decoder(model, blocks, path, field)


def _find_blocks(model: PreTrainedModel, config: PretrainedConfig) -> tuple[str, nn.ModuleList]:
    """Return the outermost list of the text decoder that is as long as the model is deep, and its name in `model`.

    Where no list is (LongCat-Flash counts the two attention sublayers of each block, HRM-text every pass over the
    same blocks), it is the one list whose length another field of the configuration counts, and divides the depth.
    """
    from torch import nn

    name, depth = type(model).__name__, int(config.num_hidden_layers)
    inside = {id(module) for module in decoder_of(model).modules()}
    modules = ((path, module) for path, module in model.named_modules() if id(module) in inside)
    lists = {path: module for path, module in modules if isinstance(module, nn.ModuleList)}
    paths = [path for path, blocks in lists.items() if len(blocks) == depth]
    if not paths:
        counts = {count for _, count in _layer_counts(config) if count > 0 and depth % count == 0}
        paths = _outermost([path for path, blocks in lists.items() if len(blocks) in counts])
        if len(paths) > 1:
            raise ModelError(
                f"{name} keeps its blocks in {len(paths)} lists of modules ({', '.join(paths)}) for {depth} layers: "
                "expected one list"
            )
    if not paths:
        raise ModelError(f"{name} keeps its {depth} blocks in no list of modules that could be found")
    path = _outermost(paths)[0]
    return path, lists[path]


def decoder_of(model: PreTrainedModel) -> nn.Module:
    """Return the part of `model` that gives the last hidden states; a vision tower is no part of it."""
    decoder: nn.Module = model.get_decoder()
    if decoder is model.get_output_embeddings():  # ModernBERT-decoder calls its head so
        return model.base_model
    return decoder


def _outermost(paths: list[str]) -> list[str]:
    """Return the paths with the fewest dots."""
    least = min((path.count(".") for path in paths), default=0)
    return [path for path in paths if path.count(".") == least]


def _layer_counts(config: PretrainedConfig) -> list[tuple[str, int]]:
    """Return the fields of a configuration that count layers, for example `("num_layers", 12)`."""
    fields = config.to_dict().items()
    return [(name, value) for name, value in fields if "layers" in name and type(value) is int]


def compute_buffers(model: PreTrainedModel) -> None:
    """Compute again, in place, the buffers that no checkpoint stores: in float32 and then rounded, as loading does.

    Building a model in half precision computes GPT-J's and CodeGen's positions in half precision.
    """
    import torch
    from accelerate import init_empty_weights

    if model.dtype == torch.float32:
        return
    stored = model.state_dict().keys()
    with torch.random.fork_rng(devices=[]), init_empty_weights(include_buffers=False):
        exact = type(model)._from_config(copy.deepcopy(model.config), dtype=torch.float32)
    for name, buffer in exact.named_buffers():
        if name not in stored:
            model.get_buffer(name).copy_(buffer)


def count_parameters(model: torch.nn.Module) -> int:
    """Return the number of parameters, tied weights counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def check_finite(place: str, weight: torch.Tensor) -> None:
    """Refuse a weight of any shape and type that is not `is_finite`.

    Raises:
        ModelError: naming `place`.
    """
    if not is_finite(weight):
        raise ModelError(f"{place} holds NaN or infinity: the checkpoint is damaged")


def is_finite(weight: torch.Tensor) -> bool:
    """Return whether no element of a weight is NaN or infinite; whole numbers and packed formats cannot be."""
    import torch

    if weight.numel() == 0 or not weight.is_floating_point() or weight.element_size() < 2:
        return True
    least, most = torch.aminmax(weight.detach())
    return bool(least.isfinite() and most.isfinite())


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every part of `model` in evaluation mode (no dropout), and each back in the mode it was in afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


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
