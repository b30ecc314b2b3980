"""What a new model's folder gets beside the weights: files of the source, and names that older readers know.

The tokenizer is copied, not loaded and saved: what is damaged in the source is neither mended nor lost in silence.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import get_relative_import_files

from inheritune.checkpoints.stored import refuse_pointer
from inheritune.decoder.source import Place
from inheritune.storage import write_json
from inheritune.surgery.card import CARD, LICENCES

TOKENIZER = (
    "added_tokens.json",
    "additional_chat_templates/*.jinja",
    "chat_template*",
    "merges.txt",
    "*.model",
    "special_tokens_map.json",
    "tekken.json",
    "*.tiktoken",
    "tokenizer*",
    "vocab*",
)
CARRIED = (*TOKENIZER, "generation_config.json", *LICENCES)
"""Files copied as they are: the tokenizer's, the generation settings and the licence."""


def fetch_files(place: Place, names: Iterable[str] = ()) -> None:
    """Of a model on the hub, bring here the files `names` and all that a card and `finish_folder` look at."""
    if place.repository is not None:
        place.repository.fetch(names, (CARD, *CARRIED, "*.py"))


def carry_files(source: Path, target: Path, patterns: Iterable[str]) -> None:
    """Copy the files of `source` that fit `patterns` (globs) into `target`, in folders of the same names.

    Raises:
        ModelError: one of them is a git-lfs pointer.
    """
    for path in (path for pattern in patterns for path in source.glob(pattern) if path.is_file()):
        refuse_pointer(path)
        copy = target / path.relative_to(source)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, copy)


def finish_folder(folder: Path, source: Path, card: str) -> None:
    """Add to a new model's folder all but the weights: older names in its config.json, the source's files, the card."""
    add_older_names(folder / "config.json")
    carry_files(source, folder, (*CARRIED, *code_files(source)))
    (folder / CARD).write_text(card, encoding="utf-8")


def code_files(folder: Path) -> list[str]:
    """Return the files of a model's own code: those that `auto_map` names in any of its JSON files, and their imports.

    Code that lies in another repository (`owner/name--file.Class`) stays there and is not among them.
    """
    named = {reference for path in sorted(folder.glob("*.json")) for reference in _auto_map(path)}
    files = [folder / f"{reference.rpartition('.')[0]}.py" for reference in named if "--" not in reference]
    files = [path for path in files if path.is_file()]
    imported = [Path(name) for path in files for name in get_relative_import_files(path)]
    return sorted({str(path.relative_to(folder)) for path in (*files, *imported) if path.is_file()})


def _auto_map(path: Path) -> Iterator[str]:
    """Yield the classes that a JSON file names in `auto_map`, as `file.Class`; none where it cannot be read."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # who reads the file says what is wrong with it
        return
    auto_map = held.get("auto_map") if isinstance(held, dict) else None
    values: Iterable[Any] = auto_map.values() if isinstance(auto_map, dict) else [auto_map]
    for value in values:  # a tokenizer names two classes, of which one may be null
        yield from (name for name in (value if isinstance(value, list) else [value]) if isinstance(name, str))


def add_older_names(path: Path) -> None:
    """Write beside the names of transformers 5 in a config.json those that transformers 4 and other programs read.

    `dtype` was `torch_dtype`; `rope_parameters` were `rope_theta`, `partial_rotary_factor` and, for any other type than
    `default`, `rope_scaling`. Where each type of layer has parameters of its own, only Gemma 3 had older names.
    """
    config = json.loads(path.read_text(encoding="utf-8"))
    for part in (config, *(value for value in config.values() if isinstance(value, dict) and "model_type" in value)):
        part |= {name: value for name, value in _older_names(part).items() if name not in part}
    write_json(path, dict(sorted(config.items())))


def _older_names(config: dict[str, Any]) -> dict[str, Any]:
    older = {"torch_dtype": config["dtype"]} if isinstance(config.get("dtype"), str) else {}
    rope, family = config.get("rope_parameters") or {}, str(config.get("model_type"))
    if family.startswith("gemma3") and "full_attention" in rope:
        older["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    if "rope_theta" not in rope:
        return older
    neox = family.startswith("gpt_neox")
    names = {"rope_theta": "rotary_emb_base" if neox else "rope_theta"}
    names["partial_rotary_factor"] = "rotary_pct" if neox else "partial_rotary_factor"
    older |= {old: rope[name] for name, old in names.items() if name in rope}
    if rope.get("rope_type", "default") != "default":
        older["rope_scaling"] = {name: value for name, value in rope.items() if name not in names}
    return older
