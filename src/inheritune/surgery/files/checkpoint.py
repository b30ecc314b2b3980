"""The same surgery on checkpoint files, out of core: no weights are ever held as a model.

Only configurations, indexes and the files' headers are read; the bytes of the tensors that the plan needs are copied
under their new names into new safetensors shards, in a temporary folder beside the target, which is renamed when it is
whole. Of a model on the hub, only the files that hold such tensors are downloaded.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from threading import Event

from huggingface_hub import split_state_dict_into_shards_factory

from inheritune.checkpoints.copying import not_finite, write_file
from inheritune.checkpoints.folder import (
    INDEX,
    PICKLED,
    PICKLED_INDEX,
    SINGLE,
    read_folder,
    read_index,
    tensor_names,
    weight_file,
)
from inheritune.checkpoints.stored import StoredTensor
from inheritune.decoder import load_config
from inheritune.decoder.source import Place, locate
from inheritune.errors import ModelError, OutputError
from inheritune.progress import progress
from inheritune.storage import user_path, whole_folder
from inheritune.surgery.assembly import resolve_plan
from inheritune.surgery.build import warn_not_finite
from inheritune.surgery.card import describe_call, model_card
from inheritune.surgery.config.blueprint import Draft
from inheritune.surgery.config.target import depth_of
from inheritune.surgery.files.carried import fetch_files, finish_folder
from inheritune.surgery.files.tensors import change_moved, check_complete, choose_tensors, drop_tied, layers_prefix
from inheritune.surgery.plan.layer_plan import LayerPlan


def inherit_checkpoint(
    src_dir: str | Path,
    dst_dir: str | Path,
    layers: int | str | Iterable[int] | None = None,
    parts: str | Iterable[str] = "all",
    *,
    plan: LayerPlan | None = None,
    target: str | Path | None = None,
    moved: str | None = None,
    max_shard_size: int | str = "5GB",
    revision: str | None = None,
    trust_remote_code: bool = False,
    command: str | None = None,
    sync: bool = False,
) -> Path:
    """Write a checkpoint made of layers of the one at `src_dir`, reading only the bytes it needs.

    `AutoModelForCausalLM.from_pretrained(dst_dir)` loads it, and its weights equal those of `inherit` bit for bit. With
    it go the tokenizer, the generation settings, the licence and a model card.

    Args:
        src_dir: a local folder or a hub id, with config.json and safetensors or PyTorch weights; it is only read.
        dst_dir: a new or empty folder; it appears when it is whole.
        layers: the layers to take, see `LayerPlan.from_layers`; or pass `plan`.
        parts: must be all: what is not copied would need random initialisation, which `inherit` does.
        plan: where each layer comes from, instead of `layers`; every row whole.
        target: the model being grown or stacked (a folder or a hub id), for plans with rows from `"target"`. A plan
            whose rows all come from there (stacking) may leave it out: `src_dir` is then stacked on itself.
        moved: what is done about layers that get another number, as in `inherit`; the few weights that then change are
            read one at a time.
        max_shard_size: bytes, or text such as `"5GB"`; a larger shard of the source is split, smaller ones stay as they
            are; a tensor that is larger gets a shard of its own.
        revision: the branch, tag or commit of `src_dir` on the hub.
        trust_remote_code: run the code that the checkpoint brings along, if it needs any.
        command: what the model card says made the checkpoint; this call if None. Folders in it lose their paths.
        sync: wait until the disk has everything before the folder gets its name. Without it a power cut in the seconds
            after the return can leave damaged files under the right names, as after any copy.

    Returns:
        `dst_dir` as a path.

    Raises:
        PlanError: the plan does not fit the model, or sets weights anew (random, or to zero); said before weights are
            looked for.
        ModelError: a source is not a decoder, is quantised, has no weights, cannot be had from the hub, or a file is
            missing, damaged or wrong.
        OutputError: `dst_dir` is a source or inside one, holds files already (also if another process filled it
            meanwhile), or cannot be written; or `max_shard_size` is no size.
    """
    check_shard_size(max_shard_size)
    destination = user_path(dst_dir)
    places = locate_sources(src_dir, target, revision)
    check_destination(destination, *(place.folder for place in places.values()))
    configs = {
        name: load_config(
            place.address,
            revision=place.repository.commit if place.repository else None,
            trust_remote_code=trust_remote_code,
        )
        for name, place in places.items()
    }
    plan = resolve_plan(depth_of(configs["reference"]), layers, parts, plan, moved)
    draft = Draft.of(plan, configs["reference"], configs.get("target"))
    command = command or describe_call(src_dir, destination, plan, target)
    copy_checkpoint(draft, places, destination, max_shard_size=max_shard_size, command=command, sync=sync)
    return destination


def copy_checkpoint(
    draft: Draft,
    places: Mapping[str, Place],
    destination: Path,
    *,
    max_shard_size: int | str,
    command: str,
    sync: bool = False,
) -> None:
    """Write the checkpoint that `draft` describes; what `inherit_checkpoint` does once all is worked out.

    `places` are the checkpoints by the model's name in the plan; all else, the errors too, is as there.
    """
    draft.check_copyable()
    plan = draft.plan
    names: list[str] = sorted({*plan.models, plan.rest})
    sources = {name: places.get(name, places["reference"]) for name in names}
    stored = {name: _tensor_names(place) for name, place in sources.items()}
    prefixes = {n: layers_prefix(stored[n], draft.sources[n].layers, each.name) for n, each in sources.items()}
    chosen = choose_tensors(stored, prefixes, plan)
    used = {name: {key for owner, key in chosen.values() if owner == name} for name in sources}
    for name, place in sources.items():
        fetch_files(place, _weight_files(place.folder, used[name]) if place.repository else ())
    card = model_card(destination.name, plan, places, draft.parameters, command, notes=draft.notes)
    with whole_folder(destination, sync=sync) as temporary:
        with TemporaryDirectory(dir=temporary) as scratch:
            read = {n: read_folder(each.folder, used[n], Path(mkdtemp(dir=scratch))) for n, each in sources.items()}
            tensors = {name: read[owner][key] for name, (owner, key) in chosen.items()}
            drop_tied(tensors, draft.new, sources[plan.rest].name)
            check_complete(tensors, draft, sources)
            _check_space(temporary, tensors, destination)
            shards = _plan_shards(tensors, max_shard_size)
            change_moved(tensors, draft, prefixes[plan.rest], Path(scratch))
            damaged = _write_shards(temporary, tensors, shards)
        draft.config.save_pretrained(temporary)
        finish_folder(temporary, sources[plan.rest].folder, card)
    if damaged:
        warn_not_finite(damaged)


def locate_sources(
    reference: str | Path, target: str | Path | None = None, revision: str | None = None
) -> dict[str, Place]:
    """Find the models that a plan takes layers from, by their names in it; see `locate`."""
    places = {"reference": locate(reference, revision)}
    return places if target is None else {**places, "target": locate(target)}


def check_shard_size(size: int | str) -> None:
    """Refuse what is no size of a file, as Hugging Face reads it: an int of bytes, or text with a unit (`"1.5GB"`).

    Raises:
        OutputError: it is of another type or form, negative, or less than a byte.
    """
    count = size if type(size) is int else 0
    if found := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT])B\s*", str(size), re.IGNORECASE):
        count = int(float(found[1]) * 1000 ** (1 + "KMGT".index(found[2].upper())))
    if count < 1:
        raise OutputError(f"max_shard_size {size!r}: expected KB, MB, GB or TB as in '5GB', or a positive int of bytes")


def check_destination(destination: Path, *sources: Path) -> None:
    """Refuse, by an OutputError, to write into one of the `sources`, or where anything is that cannot be replaced."""
    place = destination.resolve()
    for folder in sources:
        if place == folder.resolve():
            raise OutputError(f"the output folder {destination} is the source: pass another one")
        if folder.is_dir() and folder.resolve() in place.parents:
            raise OutputError(f"the output folder {destination} is inside the source, which is only read")
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise OutputError(f"{destination} exists and is not empty: pass a new or empty folder")
    if os.path.ismount(place):
        raise OutputError(f"{destination} is a mount point, which cannot be renamed to: try {destination / 'model'}")


def _tensor_names(place: Place) -> list[str]:
    """Return the names of all tensors; of a model on the hub, from its index, or its only file if it has none."""
    names = (INDEX, SINGLE, PICKLED_INDEX, PICKLED)
    if place.repository is not None and not any(map(place.repository.fetch_if_there, names)):
        raise ModelError(f"{place.name} has no weights on the hub: expected one of {', '.join(names)}")
    return tensor_names(place.folder)


def _weight_files(folder: Path, tensors: Iterable[str]) -> list[str]:
    place = weight_file(folder)
    return sorted({read_index(place)[name] for name in tensors}) if place.suffix == ".json" else [place.name]


def _check_space(folder: Path, tensors: Mapping[str, StoredTensor], destination: Path) -> None:
    """Refuse before a long copy what cannot fit."""
    total, free = sum(tensor.size for tensor in tensors.values()), shutil.disk_usage(folder).free
    if free < total:
        raise OutputError(f"cannot write {destination}: no space left for {total:,} bytes, the disk has {free:,}")


def _plan_shards(tensors: Mapping[str, StoredTensor], max_shard_size: int | str) -> dict[str, list[str]]:
    """Return the shard files and the names of their tensors.

    A shard takes its tensors from one file of the source, so that a copy keeps the source's shards (and its speed);
    what exceeds `max_shard_size` is split as huggingface_hub does it.
    """
    files: dict[Path, dict[str, StoredTensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        files[tensor.path][name] = tensor
    shards: list[list[str]] = []
    for path in sorted(files):
        split = split_state_dict_into_shards_factory(
            files[path],
            get_storage_size=lambda tensor: tensor.size,
            filename_pattern="model{suffix}.safetensors",
            max_shard_size=max_shard_size,
        )
        shards += split.filename_to_tensors.values()
    if len(shards) == 1:
        return {SINGLE: shards[0]}
    return {f"model-{i:05d}-of-{len(shards):05d}.safetensors": names for i, names in enumerate(shards, start=1)}


def _write_shards(folder: Path, tensors: Mapping[str, StoredTensor], shards: Mapping[str, list[str]]) -> list[str]:
    """Write the weights; return the names of those that hold NaN or infinity, which a thread looks for meanwhile."""
    total, stop = sum(tensor.size for tensor in tensors.values()), Event()
    with progress("copying bytes", total) as advance, ThreadPoolExecutor(1) as pool:
        damaged = pool.submit(not_finite, tensors, stop)
        try:
            for name, keys in shards.items():
                write_file(folder / name, {key: tensors[key] for key in keys}, advance)
        except BaseException:
            stop.set()
            raise
    if len(shards) > 1:
        weight_map = {key: name for name, keys in shards.items() for key in keys}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        # Not storage.write_json: its flush of one small file would make the disk write the shards first.
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return damaged.result()
