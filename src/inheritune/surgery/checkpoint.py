"""The same surgery on safetensors files, out of core: no weights are ever held as a model.

Only the configuration and the files' headers are read; the bytes of the tensors that the plan needs are copied under
their new names into new shards, in a temporary folder beside the target, which is renamed when it is whole.
"""

from __future__ import annotations

import os
import re
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from inheritune.decoder import Decoder, load_config
from inheritune.errors import InherituneError, ModelError, OutputError, PlanError
from inheritune.progress import progress
from inheritune.records import write_json
from inheritune.surgery.config import depth_of
from inheritune.surgery.fit import draft
from inheritune.surgery.inherit import resolve_plan
from inheritune.surgery.plan import LayerPlan
from inheritune.surgery.tensor_files import INDEX, StoredTensor, read_folder, write_file

if TYPE_CHECKING:
    from transformers import PretrainedConfig

CARRIED = (
    "added_tokens.json",
    "chat_template*",
    "generation_config.json",
    "LICENSE*",
    "merges.txt",
    "*.model",
    "special_tokens_map.json",
    "*.tiktoken",
    "tokenizer*",
    "vocab*",
)
"""Files copied as they are: the tokenizer's, the generation settings and the licence."""


def inherit_checkpoint(
    src_dir: str | Path,
    dst_dir: str | Path,
    layers: int | str | Iterable[int] | None = None,
    parts: str | Iterable[str] = "all",
    *,
    plan: LayerPlan | None = None,
    max_shard_size: int | str = "5GB",
) -> Path:
    """Write a checkpoint made of layers of the one in `src_dir`, reading only the bytes it needs.

    `AutoModelForCausalLM.from_pretrained(dst_dir)` loads it, and its weights equal those of `inherit` bit for bit.

    Args:
        src_dir: a local folder with config.json and safetensors weights; it is only read.
        dst_dir: a new or empty folder; it appears when it is whole.
        layers: the layers to take, see `LayerPlan.from_layers`; or pass `plan`.
        parts: must be all: what is not copied would need random initialisation, which `inherit` does.
        plan: where each layer comes from, instead of `layers`; every row from the reference, whole.
        max_shard_size: bytes, or text such as `"5GB"`; a tensor that is larger gets a shard of its own.

    Returns:
        `dst_dir` as a path.

    Raises:
        PlanError: the plan does not fit the model, or leaves something random.
        ModelError: the source is not a decoder, is quantised, has no safetensors weights, or a file is missing,
            damaged or wrong.
        OutputError: `dst_dir` is `src_dir`, holds files already, or cannot be written.
    """
    source, destination = Path(src_dir).expanduser(), Path(dst_dir).expanduser()
    check_destination(source, destination)
    config = load_config(source)
    plan = resolve_plan(depth_of(config), layers, parts, plan)
    new_config = check_whole(config, plan)
    tensors = rename_tensors(read_folder(source), plan, depth_of(config))
    shards = _plan_shards(tensors, max_shard_size)
    with _whole_folder(destination) as temporary:
        new_config.save_pretrained(temporary)
        _carry_files(source, temporary)
        _write_shards(temporary, tensors, shards)
    return destination


def check_destination(source: Path, destination: Path) -> None:
    """Refuse to write into the source, or where anything is already."""
    if destination.resolve() == source.resolve():
        raise OutputError(f"the output folder {destination} is the source: pass another one")
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise OutputError(f"{destination} exists and is not empty: pass a new or empty folder")


def check_whole(config: PretrainedConfig, plan: LayerPlan) -> PretrainedConfig:
    """Return the target's configuration after confirming, on weightless models, that the plan fits whole layers."""
    if plan.models != {"reference"} or not plan.copies_all:
        raise PlanError(
            "this plan leaves weights random or takes them from a target: use inherit, which builds the model"
        )
    new_config, source, _ = draft(config, plan)
    _refuse_shared_layers(source)
    return new_config


def _refuse_shared_layers(source: Decoder) -> None:
    """Refuse a model whose layers share weights: its files hold them once, under one of the layers' names."""
    owners: dict[int, str] = {}
    prefix = f"{source.blocks_path}."
    for key, weight in source.model.state_dict(keep_vars=True).items():
        if not key.startswith(prefix):
            continue
        owner = owners.setdefault(id(weight), key)
        if owner.removeprefix(prefix).split(".")[0] != key.removeprefix(prefix).split(".")[0]:
            raise PlanError(f"layers of {type(source.model).__name__} share weights ({owner} and {key}): use inherit")


def rename_tensors(stored: dict[str, StoredTensor], plan: LayerPlan, depth: int) -> dict[str, StoredTensor]:
    """Return the target's tensors by name: those outside the blocks, then each layer's from the source layer.

    Tensors of layers that the model does not have (DeepSeek's prediction layer behind the last) are left out.

    Raises:
        ModelError: the source layers cannot be found among the names.
    """
    prefix = _blocks_prefix(stored, depth)
    blocks: dict[int, dict[str, StoredTensor]] = defaultdict(dict)
    tensors: dict[str, StoredTensor] = {}
    for key, tensor in stored.items():
        found = re.fullmatch(rf"{re.escape(prefix)}\.(\d+)\.(.+)", key)
        if found:
            blocks[int(found[1])][found[2]] = tensor
        else:
            tensors[key] = tensor
    layers = [row.source for row in plan if row.source is not None]
    for index, layer in enumerate(layers):
        tensors |= {f"{prefix}.{index}.{name}": tensor for name, tensor in blocks[layer].items()}
    return tensors


def _blocks_prefix(keys: Iterable[str], depth: int) -> str:
    """Return the outermost name under which layers 0 .. depth-1 are stored, for example `model.layers`.

    It is read from the names, not from the model class: checkpoints may leave out the base model's prefix or store
    weights under older names, which transformers maps when it loads them.
    """
    numbers: dict[str, set[int]] = defaultdict(set)
    for key in keys:
        for found in re.finditer(r"\.(\d+)\.", key):
            numbers[key[: found.start()]].add(int(found[1]))
    lists = [prefix for prefix, found in numbers.items() if found.issuperset(range(depth))]
    if not lists:
        raise ModelError(f"the checkpoint has no weights for all layers 0-{depth - 1} that config.json says it has")
    return min(lists, key=lambda prefix: (prefix.count("."), prefix))


def _plan_shards(tensors: dict[str, StoredTensor], max_shard_size: int | str) -> dict[str, list[str]]:
    """Return the shard files and the names of their tensors, as huggingface_hub would split them."""
    from huggingface_hub import split_state_dict_into_shards_factory

    try:
        split = split_state_dict_into_shards_factory(
            tensors,
            get_storage_size=lambda tensor: tensor.size,
            filename_pattern="model{suffix}.safetensors",
            max_shard_size=max_shard_size,
        )
    except ValueError as error:
        raise OutputError(f"max_shard_size {max_shard_size!r}: expected bytes or a size such as '5GB'") from error
    return split.filename_to_tensors


def _write_shards(folder: Path, tensors: dict[str, StoredTensor], shards: dict[str, list[str]]) -> None:
    with progress("copying tensors", len(tensors)) as advance:
        for name, keys in shards.items():
            write_file(folder / name, {key: tensors[key] for key in keys}, advance)
    if len(shards) > 1:
        total = sum(tensor.size for tensor in tensors.values())
        weight_map = {key: name for name, keys in shards.items() for key in keys}
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))})


def _carry_files(source: Path, target: Path) -> None:
    for pattern in CARRIED:
        for path in source.glob(pattern):
            if path.is_file():
                shutil.copyfile(path, target / path.name)


@contextmanager
def _whole_folder(destination: Path) -> Iterator[Path]:
    """Give a temporary folder beside `destination` to fill; it gets that name when the block ends without an error.

    Raises:
        OutputError: it cannot be written (no space, no permission); nothing is left behind.
    """
    temporary = destination.with_name(f".{destination.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if destination.exists():
            destination.rmdir()
        temporary.rename(destination)
    except InherituneError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write {destination}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
