"""A checkpoint larger than memory, opened without its blocks: each block's weights are read when they are needed.

The model is built from its configuration with parameters that have no values (PyTorch's meta device) and buffers that
have them. What stays in memory is what the base model needs outside its blocks: embeddings and the final norm. The
language-model head is left unread unless it is tied to the embeddings. Names and shapes in the files are brought to
the model's by the very function with which `from_pretrained` does it, given one block's tensors at a time, so renamed
prefixes and fused experts come out as in memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from inheritune.checkpoints.folder import INDEX, SINGLE, checkpoint_bytes, read_folder
from inheritune.checkpoints.stored import IN_MEMORY, StoredTensor, StreamError
from inheritune.decoder.loading import load_config, load_model
from inheritune.decoder.source import CONFIG, locate
from inheritune.decoder.view import Decoder, check_finite, compute_buffers, open_decoder
from inheritune.errors import ModelError, library_errors

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

MEMORY_SHARE = 0.5
"""A checkpoint of more bytes than this share of the available memory is streamed unless the caller says otherwise.

The other half is for what loading and analysing hold beside the weights. Streaming costs little where it is not needed:
both ways read every byte once.
"""


class BlockWeights:
    """Puts the weights of one block at a time into a model whose blocks have none.

    Attributes:
        source: what the checkpoint is called in messages.
    """

    def __init__(self, source: str, decoder: Decoder, stored: Mapping[str, StoredTensor]) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping

        self.source, self._decoder, self._stored = source, decoder, stored
        self._mapping = list(get_model_conversion_mapping(decoder.model))
        self._names = _model_names(decoder.model, self._mapping, stored)

    @contextmanager
    def loaded(self, layer: int) -> Iterator[None]:
        """Give block `layer` its weights from the files, and take them away again at the end.

        Raises:
            ModelError: a file changed or cannot be read, or a weight is missing, of a wrong shape, NaN or infinite.
        """
        block, place = self._decoder.blocks[layer], f"layer {layer}"
        with _as_before(block):
            self._load(self._keys_of_block(layer), place)
            for name, weight in block.named_parameters(prefix=self._decoder.block_prefix(layer).removesuffix(".")):
                if weight.is_meta:
                    raise ModelError(f"the checkpoint {self.source} gives {place} no weight {name}")
                check_finite(f"{place} ({name})", weight)
            yield

    @contextmanager
    def blank(self, layer: int) -> Iterator[None]:
        """Give block `layer` zeros for weights, for a run that only asks which functions the model calls."""
        import torch

        with _as_before(self._decoder.blocks[layer]) as held:
            for module, parameters in held:
                for name, weight in parameters.items():
                    zeros = torch.zeros_like(weight, device="cpu")
                    module._parameters[name] = torch.nn.Parameter(zeros, requires_grad=False)
            yield

    def read_ahead(self, layer: int) -> None:
        """Ask the operating system to bring block `layer` into its file cache, which is not the process's memory."""
        if not hasattr(os, "posix_fadvise") or layer >= self._decoder.layers:
            return
        for key in self._keys_of_block(layer):
            tensor = self._stored[key]
            with tensor.path.open("rb") as file:
                os.posix_fadvise(file.fileno(), tensor.start, tensor.size, os.POSIX_FADV_WILLNEED)

    def load_resident(self, part: nn.Module) -> None:
        """Read what `part` of the model, the base model or all of it, needs outside the blocks, for good.

        Raises:
            ModelError: as `loaded`, or weights are missing anywhere in the checkpoint.
            StreamError: a block shares weights with another part of the model.
        """
        model, groups = self._decoder.model, self._checked_names()
        covered = {name for names in self._names.values() for name in names}
        inside = {id(weight) for weight in self._decoder.blocks.parameters()}
        missing = [weight for weight in part.parameters() if weight.is_meta and id(weight) not in inside]
        resident = [groups[id(weight)] for weight in missing]
        stored = {next(name for name in names if name in covered): names for names in resident}
        keys = [key for key, names in self._names.items() if not stored.keys().isdisjoint(names)]
        self._load(keys, "the model outside its blocks")
        for name, names in stored.items():
            weight = model.get_parameter(name)
            if weight.is_meta:
                raise ModelError(f"the weight {name} was not found in the checkpoint")
            check_finite(f"the weight {names[0]}", weight)
            for tied in names:  # the head's name may be the one in the files
                module, _, attribute = tied.rpartition(".")
                model.get_submodule(module)._parameters[attribute] = weight

    def _keys_of_block(self, layer: int) -> list[str]:
        prefix = self._decoder.block_prefix(layer)
        return [key for key, names in self._names.items() if names[0].startswith(prefix)]

    def _load(self, keys: Sequence[str], place: str) -> None:
        """Read the tensors `keys`, convert them as `from_pretrained` does, and put them into the model."""
        from transformers.core_model_loading import convert_and_load_state_dict_in_model as load
        from transformers.modeling_utils import LoadStateDictConfig

        model = self._decoder.model
        settings = LoadStateDictConfig(
            dtype=model.dtype, dtype_plan=model._get_dtype_plan(model.config.dtype), weight_mapping=self._mapping
        )
        try:
            with no_progress_bar():
                info, _ = load(model=model, state_dict={key: self._stored[key] for key in keys}, load_config=settings)
        except OSError as error:
            raise ModelError(f"cannot read {place} of {self.source}: {error.strerror or error}") from error
        if info.mismatched_keys:
            name, stored, expected = min(info.mismatched_keys)
            raise ModelError(f"{self.source} stores {name} as {tuple(stored)}: expected {tuple(expected)}")
        if info.conversion_errors:
            name = min(info.conversion_errors)
            raise ModelError(f"cannot convert {name} of {self.source} to the model's layout: {IN_MEMORY}")

    def _checked_names(self) -> dict[int, list[str]]:
        """Return the names of each parameter by its id; tied weights have several.

        A model in which a block's weight is also another module's is refused (each is read with its own block), and,
        before hours are spent on it, a checkpoint without some of the model's weights.
        """
        groups: dict[int, list[str]] = {}
        for name, parameter in self._decoder.model.named_parameters(remove_duplicate=False):
            groups.setdefault(id(parameter), []).append(name)
        for names in groups.values():
            inside = next((name for name in names if name.startswith(f"{self._decoder.blocks_path}.")), None)
            if inside is not None and len(names) > 1:
                other = next(name for name in names if name != inside)
                raise StreamError(f"{inside} and {other} of {self.source} are one weight: {IN_MEMORY}")
        covered = {name for names in self._names.values() for name in names}
        missing = sorted(names[0] for names in groups.values() if covered.isdisjoint(names))
        if missing:
            raise ModelError(
                f"the checkpoint {self.source} lacks {len(missing)} of the model's weights, {missing[0]!r} first"
            )
        return groups


@dataclass(frozen=True)
class StreamedDecoder(Decoder):
    """A decoder whose blocks have no values until `weights` gives them some.

    Attributes:
        weights: reads the weights of one block at a time.
    """

    weights: BlockWeights


def load_decoder(source: PreTrainedModel | Decoder | str | Path, stream: bool | None = None) -> Decoder:
    """Open a model, in memory or, where its checkpoint is too large for that, block by block.

    Args:
        source: a model, a decoder that is open already, a local folder or a hub id.
        stream: True to read it block by block, False to load it whole; None for block by block when the checkpoint's
            bytes exceed `MEMORY_SHARE` of the available memory and its kind of checkpoint allows that.

    Returns:
        A `StreamedDecoder` if it is read block by block.

    Raises:
        ModelError: as `load_model`; or `stream` is True and it cannot be read block by block.
    """
    from transformers import PreTrainedModel

    if isinstance(source, Decoder):
        return source
    if isinstance(source, PreTrainedModel):
        if stream:
            raise ModelError("the model is in memory already: pass a folder or a hub id to read it layer by layer")
        return open_decoder(source)
    load_config(source)  # says what is wrong with the source
    if stream or (stream is None and checkpoint_bytes(_local_folder(source)) > MEMORY_SHARE * available_memory()):
        try:
            return open_streamed(source)
        except StreamError:
            if stream:
                raise
    return open_decoder(load_model(source))


def open_streamed(source: str | Path) -> StreamedDecoder:
    """Open the checkpoint at `source`, a local folder or a hub id, without reading its blocks.

    The types are those the checkpoint is saved in. The model is in evaluation mode, on the CPU.

    Raises:
        ModelError: there is no such model, it is not a decoder, or a file or a weight is missing or damaged.
        StreamError: it is quantised, has no safetensors files, or its blocks share weights.
    """
    config, folder = load_config(source), _local_folder(source)
    _check_plain(config, folder, source)
    stored = read_folder(folder)
    for tensor in stored.values():
        tensor.dtype  # noqa: B018 - refuses types that models do not compute in
    with library_errors(f"{folder / CONFIG} is wrong"):
        decoder = open_decoder(_without_weights(config, stored))
    streamed = StreamedDecoder(**vars(decoder), weights=BlockWeights(str(source), decoder, stored))
    with library_errors(f"cannot read {source} layer by layer"):
        streamed.weights.load_resident(decoder.model.base_model)
    return streamed


def available_memory() -> int:
    """Return how many bytes this process may still take: what the machine, its control group and its limits leave."""
    used = psutil.Process().memory_info().rss
    return max(0, min([int(psutil.virtual_memory().available), *(limit - used for limit in _limits())]))


def _limits() -> list[int]:
    """Return the limits on the process's bytes: its control group's (Linux, cgroup v2) and `ulimit -d`."""
    limits = []
    with suppress(OSError):
        group = Path("/proc/self/cgroup").read_text("utf-8").strip().rpartition("::")[2].lstrip("/")
        root = Path("/sys/fs/cgroup")
        texts = [(p / "memory.max").read_text("utf-8") for p in (root, root / group) if (p / "memory.max").is_file()]
        limits += [int(text) for text in texts if text.strip().isdigit()]  # or `max`
    with suppress(ImportError):  # Windows
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_DATA)
        limits += [soft] if soft != resource.RLIM_INFINITY else []
    return limits


def _check_plain(config: PretrainedConfig, folder: Path, source: str | Path) -> None:
    """Refuse a folder whose weights are quantised or, as `from_pretrained` finds them, not plain safetensors files."""
    quantised = getattr(config, "quantization_config", None)
    if quantised is not None:
        method = quantised.get("quant_method", "?") if isinstance(quantised, dict) else quantised.quant_method
        name = getattr(method, "value", method)
        raise StreamError(
            f"{source} is quantised ({name}) and cannot be read by layer: {IN_MEMORY} or use plain weights"
        )
    if getattr(config, "transformers_weights", None) or (folder / "adapter_config.json").is_file():
        raise StreamError(f"{source} puts its weights together from other files: {IN_MEMORY}")
    if not (folder / SINGLE).is_file() and not (folder / INDEX).is_file():
        kinds = sorted({path.suffix for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".gguf")})
        content = f"only {', '.join(kinds)} files" if kinds else "no weights"
        raise StreamError(f"{source} holds {content}: expected {SINGLE} or {INDEX} to read by layer, or {IN_MEMORY}")


def _local_folder(source: str | Path) -> Path:
    """Return the folder with the checkpoint, for a hub id the one in the hub's cache (filled first)."""
    place = locate(source)
    if place.repository is not None:
        place.repository.fetch((), ("model*.safetensors", INDEX))
    return place.folder


def _without_weights(config: PretrainedConfig, stored: Mapping[str, StoredTensor]) -> PreTrainedModel:
    """Build the model with buffers that have values and parameters that have none."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    dtype = config.dtype
    if dtype is None:  # as from_pretrained: the first floating type in the files
        dtype = next((tensor.dtype for tensor in stored.values() if tensor.dtype.is_floating_point), None)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.tie_weights()  # making the parameters empty one by one has untied them
    compute_buffers(model)
    return model.eval()


def _model_names(model: PreTrainedModel, mapping: Sequence[Any], keys: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return, for each key of the checkpoint, the names of the model's weights that are made of it."""
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    known, prefix = model.state_dict(), model.base_model_prefix
    converters = [rule for rule in mapping if isinstance(rule, WeightConverter)]
    renamings = [rule for rule in mapping if isinstance(rule, WeightRenaming)]
    targets = {pattern: rule.target_patterns for rule in converters for pattern in rule.source_patterns}
    names: dict[str, tuple[str, ...]] = {}
    for key in sorted(keys, key=dot_natural_key):  # from_pretrained's order: some rules wait for an earlier key
        name, pattern = rename_source_key(key, renamings, converters, prefix, known)
        if name not in known and key in known:
            name, pattern = rename_source_key(key, [], [], prefix, known)
        parts = targets[pattern] if pattern is not None else [name]
        names[key] = (name, *(name.replace(parts[0], part) for part in parts[1:]))
    return names


@contextmanager
def _as_before(block: nn.Module) -> Iterator[list[tuple[nn.Module, dict[str, nn.Parameter]]]]:
    """Give the parameters of each module in the block, and put them back at the end."""
    held = [(m, {name: p for name, p in m._parameters.items() if p is not None}) for m in block.modules()]
    try:
        yield held
    finally:
        for module, parameters in held:
            module._parameters.update(parameters)


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """Keep transformers from drawing a bar for every block."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
