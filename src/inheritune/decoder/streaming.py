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
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inheritune.checkpoints.folder import INDEX, SINGLE, checkpoint_bytes, read_folder
from inheritune.checkpoints.stored import IN_MEMORY, StoredTensor, StreamError
from inheritune.decoder.loading import load_config, load_model
from inheritune.decoder.source import CONFIG, locate
from inheritune.decoder.view import Decoder, check_finite, compute_buffers, open_decoder
from inheritune.errors import ModelError, library_errors

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

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
        self.source = source
        self._decoder = decoder
        self._stored = stored
        self._mapping = conversions(decoder.model)
        self._names = model_names(decoder.model, self._mapping, stored)

    @contextmanager
    def loaded(self, layer: int) -> Iterator[None]:
        """Give block `layer` its weights from the files, and take them away again at the end.

        Raises:
            ModelError: a file changed or cannot be read, or a weight is missing, of a wrong shape, NaN or infinite.
        """
        block, place = self._decoder.blocks[layer], f"layer {layer}"
        empty = _parameters(block)
        try:
            self._load(self._keys_of_block(layer), place)
            self._check(self._decoder.block_prefix(layer), block, place)
            yield
        finally:
            _put_back(empty)

    @contextmanager
    def blank(self, layer: int) -> Iterator[None]:
        """Give block `layer` zeros for weights, for a run that only asks which functions the model calls."""
        import torch

        empty = _parameters(self._decoder.blocks[layer])
        try:
            for module, name, parameter in empty:
                zeros = torch.zeros(parameter.shape, dtype=parameter.dtype)
                module._parameters[name] = torch.nn.Parameter(zeros, requires_grad=False)
            yield
        finally:
            _put_back(empty)

    def read_ahead(self, layer: int) -> None:
        """Ask the operating system to bring block `layer` into its file cache, which is not the process's memory."""
        if not hasattr(os, "posix_fadvise") or layer >= self._decoder.layers:
            return
        for key in self._keys_of_block(layer):
            tensor = self._stored[key]
            with tensor.path.open("rb") as file:
                os.posix_fadvise(file.fileno(), tensor.start, tensor.size, os.POSIX_FADV_WILLNEED)

    def load_resident(self) -> None:
        """Read what the base model needs outside its blocks, for good.

        Raises:
            ModelError: as `loaded`, or weights are missing anywhere in the checkpoint.
            StreamError: a block shares weights with another part of the model.
        """
        groups = _tied(self._decoder.model)
        self._check_unshared(groups)
        self._check_complete(groups)
        wanted = self._resident_names()
        covered = {name for names in self._names.values() for name in names}
        sources = {name: _stored_name(name, groups, covered) for name in wanted}
        keys = [key for key, names in self._names.items() if not set(sources.values()).isdisjoint(names)]
        self._load(keys, "the model outside its blocks")
        for name, stored_as in sources.items():
            if name != stored_as:
                _share(self._decoder.model, name, stored_as)
        for name in wanted:
            _check_values(f"the weight {name}", name, self._decoder.model.get_parameter(name))

    def _keys_of_block(self, layer: int) -> list[str]:
        prefix = self._decoder.block_prefix(layer)
        return [key for key, names in self._names.items() if names[0].startswith(prefix)]

    def _resident_names(self) -> list[str]:
        """Return the names of the base model's parameters outside the blocks."""
        base = {id(parameter) for parameter in self._decoder.model.base_model.parameters()}
        blocks = {id(parameter) for parameter in self._decoder.blocks.parameters()}
        return [n for n, parameter in self._decoder.model.named_parameters() if id(parameter) in base - blocks]

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

    def _check(self, prefix: str, block: nn.Module, place: str) -> None:
        """Refuse a block with a weight that was not read, is NaN or infinite."""
        for name, weight in block.named_parameters(prefix=prefix.removesuffix(".")):
            if weight.is_meta:
                raise ModelError(f"the checkpoint {self.source} gives {place} no weight {name}")
            _check_values(f"{place} ({name})", name, weight)

    def _check_unshared(self, groups: Iterable[list[str]]) -> None:
        """Refuse a model in which a block's weights are also another module's: each is read with its own block."""
        prefix = f"{self._decoder.blocks_path}."
        for names in groups:
            inside = next((name for name in names if name.startswith(prefix)), None)
            if inside is not None and len(names) > 1:
                other = next(name for name in names if name != inside)
                raise StreamError(f"{inside} and {other} of {self.source} are one weight: {IN_MEMORY}")

    def _check_complete(self, groups: Iterable[list[str]]) -> None:
        """Refuse a checkpoint without some of the model's weights before hours are spent on it."""
        covered = {name for names in self._names.values() for name in names}
        missing = sorted(names[0] for names in groups if covered.isdisjoint(names))
        if missing:
            raise ModelError(
                f"the checkpoint {self.source} lacks {len(missing)} of the model's weights, {missing[0]!r} first"
            )


@dataclass(frozen=True)
class StreamedDecoder(Decoder):
    """A decoder whose blocks have no values until `weights` gives them some.

    Attributes:
        weights: reads the weights of one block at a time.
    """

    weights: BlockWeights


def load_decoder(source: PreTrainedModel | str | Path, stream: bool | None = None) -> Decoder:
    """Open a model, in memory or, where its checkpoint is too large for that, block by block.

    Args:
        source: a model, a local folder or a hub id.
        stream: True to read it block by block, False to load it whole; None for block by block when the checkpoint's
            bytes exceed `MEMORY_SHARE` of the available memory and its kind of checkpoint allows that.

    Returns:
        A `StreamedDecoder` if it is read block by block.

    Raises:
        ModelError: as `load_model`; or `stream` is True and it cannot be read block by block.
    """
    from transformers import PreTrainedModel

    if isinstance(source, PreTrainedModel):
        if stream:
            raise ModelError("the model is in memory already: pass a folder or a hub id to read it layer by layer")
        return open_decoder(source)
    if stream or (stream is None and _exceeds_memory(source)):
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
    config = load_config(source)
    _check_plain(config, source)
    folder = _local_folder(source)
    _check_files(folder, config, source)
    stored = read_folder(folder)
    for tensor in stored.values():
        tensor.dtype  # noqa: B018 - refuses types that models do not compute in
    with library_errors(f"{folder / CONFIG} is wrong"):
        model = _without_weights(config, stored)
    decoder = open_decoder(model)
    fields = {name: getattr(decoder, name) for name in Decoder.__dataclass_fields__}
    streamed = StreamedDecoder(**fields, weights=BlockWeights(str(source), decoder, stored))
    with library_errors(f"cannot read {source} layer by layer"):
        streamed.weights.load_resident()
    return streamed


def available_memory() -> int:
    """Return how many bytes this process may still take: what the machine, its control group and its limits leave."""
    import psutil

    used = psutil.Process().memory_info().rss
    limits = [int(psutil.virtual_memory().available)]
    limits += [limit - used for limit in (_group_limit(), _data_limit()) if limit is not None]
    return max(0, min(limits))


def _check_plain(config: Any, source: str | Path) -> None:
    quantised = getattr(config, "quantization_config", None)
    if quantised is None:
        return
    method = quantised.get("quant_method", "?") if isinstance(quantised, dict) else quantised.quant_method
    name = str(getattr(method, "value", method))
    raise StreamError(f"{source} is quantised ({name}) and cannot be read by layer: {IN_MEMORY} or use plain weights")


def _check_files(folder: Path, config: Any, source: str | Path) -> None:
    """Refuse a folder whose weights `from_pretrained` would find elsewhere than in plain safetensors files."""
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


def _exceeds_memory(source: str | Path) -> bool:
    load_config(source)  # says what is wrong with the source
    return checkpoint_bytes(_local_folder(source)) > MEMORY_SHARE * available_memory()


def _group_limit() -> int | None:
    """Return the memory limit of the process's control group (Linux, cgroup v2), or None."""
    try:
        group = Path("/proc/self/cgroup").read_text("utf-8").strip().rpartition("::")[2].lstrip("/")
        root = Path("/sys/fs/cgroup")
        texts = [(p / "memory.max").read_text("utf-8") for p in (root, root / group) if (p / "memory.max").is_file()]
        return min((int(text) for text in texts if text.strip().isdigit()), default=None)
    except (OSError, ValueError):
        return None


def _data_limit() -> int | None:
    """Return the limit on the process's data (ulimit -d), or None."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_DATA)
    return None if soft == resource.RLIM_INFINITY else soft


def _without_weights(config: Any, stored: Mapping[str, StoredTensor]) -> PreTrainedModel:
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


def conversions(model: PreTrainedModel) -> list[Any]:
    """Return transformers' rules from names and layouts in checkpoints to those of the model."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import rename_source_key  # noqa: F401
    except ImportError as error:
        raise StreamError(f"this version of transformers cannot load parts of a model: {IN_MEMORY}") from error
    return list(get_model_conversion_mapping(model))


def model_names(model: PreTrainedModel, mapping: Sequence[Any], keys: Iterable[str]) -> dict[str, tuple[str, ...]]:
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


def _tied(model: nn.Module) -> list[list[str]]:
    """Return the names of each parameter; tied weights have several."""
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    return list(groups.values())


def _stored_name(name: str, groups: Iterable[list[str]], covered: set[str]) -> str:
    """Return under which of its names a parameter is in the checkpoint, its own first."""
    group = next(names for names in groups if name in names)
    return name if name in covered else next(other for other in group if other in covered)


def _share(model: nn.Module, name: str, stored_as: str) -> None:
    """Let the weight `name` be the one that was read as `stored_as`."""
    module, _, attribute = name.rpartition(".")
    model.get_submodule(module)._parameters[attribute] = model.get_parameter(stored_as)


def _parameters(block: nn.Module) -> list[tuple[nn.Module, str, nn.Parameter]]:
    return [
        (module, name, parameter)
        for module in block.modules()
        for name, parameter in module._parameters.items()
        if parameter is not None
    ]


def _put_back(parameters: Iterable[tuple[nn.Module, str, nn.Parameter]]) -> None:
    for module, name, parameter in parameters:
        module._parameters[name] = parameter


def _check_values(place: str, name: str, weight: Tensor) -> None:
    """Refuse a weight (any shape) that was not found, is NaN or infinite."""
    if weight.is_meta:
        raise ModelError(f"the weight {name} was not found in the checkpoint")
    check_finite(place, weight)


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
