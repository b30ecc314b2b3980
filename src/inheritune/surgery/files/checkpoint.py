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
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from typing import TYPE_CHECKING

from inheritune.checkpoints.copying import write_file
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
from inheritune.checkpoints.hub import Repository
from inheritune.checkpoints.stored import StoredTensor
from inheritune.decoder import load_config
from inheritune.decoder.source import locate
from inheritune.errors import ModelError, OutputError
from inheritune.progress import progress
from inheritune.storage import whole_folder
from inheritune.surgery.build import warn_not_finite
from inheritune.surgery.card import CARD, LICENCES, describe_call, model_card
from inheritune.surgery.config.blueprint import Draft, check_copies_all
from inheritune.surgery.config.fields import depth_of
from inheritune.surgery.files.carried import CARRIED, CODE, add_older_names, carry_files, code_files
from inheritune.surgery.files.completeness import Origins, check_complete
from inheritune.surgery.files.naming import Chosen, Layout, check_same_names, choose_tensors, drop_tied
from inheritune.surgery.files.values import not_finite
from inheritune.surgery.inherit import resolve_plan
from inheritune.surgery.plan.layer_plan import LayerPlan

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class Source:
    """A checkpoint the plan takes layers from.

    Attributes:
        name: what the user called it: a folder or a hub id.
        folder: where its files are; of a model on the hub, those that are here so far.
        repository: the model on the hub; None for a folder of the user's.
    """

    name: str | Path
    folder: Path
    repository: Repository | None = None

    @classmethod
    def open(cls, source: str | Path, revision: str | None = None) -> Source:
        """Find a folder or a model on the hub, of which config.json alone is downloaded.

        Raises:
            ModelError: there is no such model, or a revision is named of a folder.
        """
        place = locate(source, revision)
        return cls(source, place.folder, place.repository)

    def config(self, trust_remote_code: bool) -> PretrainedConfig:
        """Read the configuration, of the very commit that was found."""
        if self.repository is None:
            return load_config(self.folder, trust_remote_code=trust_remote_code)
        return load_config(self.name, revision=self.repository.commit, trust_remote_code=trust_remote_code)

    def list_tensors(self) -> list[str]:
        """Return the names of all tensors; of a model on the hub, from its index, or its only file if it has none."""
        if self.repository:
            names = (INDEX, SINGLE, PICKLED_INDEX, PICKLED)
            if not any(self.repository.fetch_if_there(name) for name in names):
                raise ModelError(f"{self.name} has no weights on the hub: expected one of {', '.join(names)}")
        return tensor_names(self.folder)

    def fetch(self, tensors: Iterable[str], patterns: Iterable[str]) -> None:
        """Bring the files that hold these tensors here, and those that fit `patterns`."""
        if self.repository is None:
            return
        place = weight_file(self.folder)
        files = {place.name}
        if place.suffix == ".json":
            index = read_index(place)
            files = {index[name] for name in tensors}
        self.repository.fetch(sorted(files), patterns)


def inherit_checkpoint(
    src_dir: str | Path,
    dst_dir: str | Path,
    layers: int | str | Iterable[int] | None = None,
    parts: str | Iterable[str] = "all",
    *,
    plan: LayerPlan | None = None,
    target: str | Path | None = None,
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
    destination = Path(dst_dir).expanduser()
    sources = {"reference": Source.open(src_dir, revision)}
    if target is not None:
        sources["target"] = Source.open(target)
    first, *others = (source.folder for source in sources.values())
    check_destination(first, destination, *others)
    configs = {name: source.config(trust_remote_code) for name, source in sources.items()}
    plan = resolve_plan(depth_of(configs["reference"]), layers, parts, plan)
    check_copies_all(plan)
    draft = Draft.of(plan, configs["reference"], configs.get("target"))
    command = command or describe_call(src_dir, destination, plan, target)
    copy_checkpoint(draft, sources, destination, max_shard_size=max_shard_size, command=command, sync=sync)
    return destination


def copy_checkpoint(
    draft: Draft,
    sources: Mapping[str, Source],
    destination: Path,
    *,
    max_shard_size: int | str,
    command: str,
    sync: bool = False,
) -> None:
    """Write the checkpoint that `draft` describes; what `inherit_checkpoint` does once all is worked out.

    Args:
        draft: the new model.
        sources: the checkpoints, by the model's name in the plan; a plan that stacks the reference needs no other.
        destination: a new or empty folder.
        max_shard_size: see `inherit_checkpoint`.
        command: what the card says made it.
        sync: see `inherit_checkpoint`.

    Raises:
        PlanError, ModelError, OutputError: see `inherit_checkpoint`.
    """
    draft.check_copyable()
    plan, grown = draft.plan, sources.get("target")
    named = {"target": sources["reference"], **sources}
    chosen = _choose({name: named[name] for name in sorted({*plan.models, plan.rest})}, draft)
    _fetch_all(named, plan, chosen)
    card = model_card(
        name=destination.name,
        plan=plan,
        source=(sources["reference"].name, sources["reference"].folder),
        target=None if grown is None else (grown.name, grown.folder),
        parameters=draft.parameters,
        command=command,
    )
    with whole_folder(destination, sync=sync) as temporary:
        with TemporaryDirectory(dir=temporary) as scratch:
            tensors = _read(named, chosen, Path(scratch))
            drop_tied(tensors, draft.new, named[plan.rest].name)
            check_complete(tensors, Origins(plan, draft.new, {name: each.name for name, each in named.items()}))
            _check_space(temporary, tensors, destination)
            damaged = _write_shards(temporary, tensors, _plan_shards(tensors, max_shard_size))
        draft.config.save_pretrained(temporary)
        add_older_names(temporary)
        rest = named[plan.rest].folder
        carry_files(rest, temporary, (*CARRIED, *code_files(rest)))
        (temporary / CARD).write_text(card, encoding="utf-8")
    if damaged:
        warn_not_finite(damaged)


def check_shard_size(size: int | str) -> None:
    """Refuse what is no size of a file, as Hugging Face reads it: an int of bytes, or text with a unit (`"1.5GB"`).

    Raises:
        OutputError: it is of another type or form, negative, or less than a byte.
    """
    if isinstance(size, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT])B\s*", size, re.IGNORECASE)
        count = float(found[1]) * 1000 ** (1 + "KMGT".index(found[2].upper())) if found else 0
    else:
        count = size if isinstance(size, int) and not isinstance(size, bool) else 0
    if count < 1:
        raise OutputError(f"max_shard_size {size!r}: expected KB, MB, GB or TB as in '5GB', or a positive int of bytes")


def check_destination(source: Path, destination: Path, *others: Path) -> None:
    """Refuse to write into a source, or where anything is already.

    Raises:
        OutputError: `destination` is `source` or one of `others` or inside one, is not empty, or cannot be replaced.
    """
    place = destination.resolve()
    for folder in (source, *others):
        if place == folder.resolve():
            raise OutputError(f"the output folder {destination} is the source: pass another one")
        if folder.is_dir() and folder.resolve() in place.parents:
            raise OutputError(f"the output folder {destination} is inside the source, which is only read")
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise OutputError(f"{destination} exists and is not empty: pass a new or empty folder")
    if os.path.ismount(place):
        raise OutputError(f"{destination} is a mount point, which cannot be renamed to: try {destination / 'model'}")


def _choose(sources: Mapping[str, Source], draft: Draft) -> Chosen:
    """Return where each tensor of the new checkpoint comes from, if the sources name theirs alike."""
    layouts = {
        name: Layout.of(source.list_tensors(), draft.sources[name].layers, source.name)
        for name, source in sources.items()
    }
    check_same_names(layouts, draft.plan, draft.new)
    return choose_tensors(layouts, draft.plan)


def _fetch_all(sources: Mapping[str, Source], plan: LayerPlan, chosen: Chosen) -> None:
    for model, source in sources.items():
        tensors = [name for owner, name in chosen.values() if owner == model]
        patterns = [*((*CARRIED, CODE) if model == plan.rest else LICENCES), CARD]
        if tensors:
            source.fetch(tensors, patterns)


def _read(sources: Mapping[str, Source], chosen: Chosen, scratch: Path) -> dict[str, StoredTensor]:
    """Return where the bytes of each tensor of the new checkpoint lie."""
    stored = {}
    for model in sorted({model for model, _ in chosen.values()}):
        own = scratch / model
        own.mkdir()
        stored[model] = read_folder(
            sources[model].folder, {name for owner, name in chosen.values() if owner == model}, own
        )
    return {name: stored[model][key] for name, (model, key) in chosen.items()}


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
    from huggingface_hub import split_state_dict_into_shards_factory

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
