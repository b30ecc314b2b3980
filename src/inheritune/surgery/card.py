"""The model card of a model made by surgery: what it is, what it was made of and how, and under which licence.

The folders that a card names are the user's own: only their names are shown, never where they lie.
"""

from __future__ import annotations

import importlib.metadata
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData, metadata_load

from inheritune.checkpoints.hub import cached_name
from inheritune.decoder.source import Place
from inheritune.errors import InherituneWarning, reason
from inheritune.layers import plural
from inheritune.records.surgery import ParameterCounts
from inheritune.surgery.plan.layer_plan import LayerPlan
from inheritune.surgery.plan.row import MODELS

CARD = "README.md"
LICENCES = ("LICENSE*", "LICENCE*", "COPYING*", "NOTICE*", "USE_POLICY*")
"""Files that state under which terms a model may be used."""

_UNREAD = "unread"
"""Stands for what a card that cannot be parsed says of the licence."""

_LOADING = """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained({0!r})
tokenizer = AutoTokenizer.from_pretrained({0!r})"""

_LIBRARIES = ("inheritune", "transformers", "torch", "safetensors")

_PATH = re.compile(r"(?<![\w.:/\\~-])(?:~\w*|\.\.?|[A-Za-z]:)?(?:[/\\][^\s'\"=,;:|/\\]*)+")


def model_card(
    name: str,
    plan: LayerPlan,
    places: Mapping[str, Place],
    parameters: ParameterCounts,
    command: str,
    width: str = "",
    figures: Mapping[str, str] | None = None,
    address: str = "",
    notes: Iterable[str] = (),
) -> str:
    """Return a model card: metadata as YAML, then what there is to know, as Markdown.

    The licence is carried over from the card or the licence file of the first of the `places` that has one: where the
    reference is, and the target if the plan grows or stacks one. `width` says what was done to it (`describe_width`),
    empty for nothing. `figures` are what was measured of a model that was trained since and how much it is, a row of a
    table each, for example `{"loss on the validation text": "3.21 nats a token"}`; None for one that was not trained.
    `address` is what `from_pretrained` takes to load the model, empty for its name. `notes` stand below the plan.
    """
    origins = [_Origin(places[model]) for model in MODELS if model in places]
    licence = next((terms for terms in map(_licence, (origin.folder for origin in origins)) if terms), {})
    known = [origin.hub_id for origin in origins if origin.hub_id]
    metadata = ModelCardData(
        base_model=known[0] if len(known) == 1 else known or None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["inheritune"],
        **{key: value for key, value in licence.items() if key != _UNREAD},
    )
    names = f"The reference is {origins[0]}" + (f", the target {origins[1]}." if len(origins) > 1 else ".")
    rest = origins[-1] if plan.rest == "target" else origins[0]
    rows = "\n".join(f"| {what} | {much} |" for what, much in (figures or {}).items())
    versions = ", ".join(f"{library} {importlib.metadata.version(library)}" for library in _LIBRARIES)
    made_by = without_paths(command, (origin.folder for origin in origins))
    sections = [
        f"# {name}",
        _summary(plan, origins[0], parameters, trained=figures is not None),
        *([f"## Figures\n\n| | |\n|---|---|\n{rows}"] if rows else []),
        "## Where each layer comes from\n\n```\n"
        + "\n".join([str(plan), *notes])
        + f"\n```\n\n{names} Embeddings, final norm and head come from {rest}.",
        *([f"Of the width, the first part was kept: {width}."] if width else []),
        f"## How to load it\n\n```python\n{_LOADING.format(address or name)}\n```",
        f"## How it was made\n\n```\n{made_by}\n```\n\nVersions: {versions}.",
        f"## Licence\n\n{_licence_line(licence)}",
    ]
    return f"---\n{metadata.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n"


def describe_call(source: str | Path, destination: Path, plan: LayerPlan, target: str | Path | None = None) -> str:
    """Return the Python call that makes this checkpoint, as a card shows it below the plan."""
    layers = f"layers={[row.source for row in plan]}" if plan.models == {"reference"} else "plan=plan"
    if plan.models == {"reference"} and any(row.moved == "as-is" for row in plan):
        layers += ', moved="as-is"'
    grown = "" if target is None else f', target="{target}"'
    return f'inheritune.inherit_checkpoint("{source}", "{destination.name}", {layers}{grown})'


def without_paths(text: str, folders: Iterable[Path] = ()) -> str:
    """Return a command with the folders in it named without the places where they lie; hub ids stay as they are."""
    for folder in folders:
        text = text.replace(str(folder.resolve()), folder.resolve().name)
    return _PATH.sub(lambda path: re.split(r"[/\\]", path[0].rstrip("/\\"))[-1], text)


class _Origin:
    """A model as a card may name it: a hub id with its commit, or the bare name of a folder."""

    def __init__(self, place: Place) -> None:
        self.folder = place.folder
        self.hub_id, self.commit = cached_name(place.folder) or ("", "")
        self.name = Path(place.name).expanduser().resolve().name

    def __str__(self) -> str:
        if not self.hub_id:
            return f"`{self.name}`"
        return f"[{self.hub_id}](https://huggingface.co/{self.hub_id}/tree/{self.commit}) (commit `{self.commit}`)"


def _summary(plan: LayerPlan, source: _Origin, parameters: ParameterCounts, trained: bool) -> str:
    before, after = parameters.before, parameters.after
    count = plural(len(plan), "layer")
    text = (
        f"A model of {count}, made from {source} with [inheritune](https://arxiv.org/abs/2404.08634): "
        f"{'its layers are those of trained models' if plan.models else 'its layers are random'}, as the table below "
        f"says.\n\n| | parameters |\n|---|---|\n| before | {before:,} |\n| this model | {after:,} |"
    )
    whole = after == before and plan.models == {"reference"} and [row.source for row in plan] == [*range(len(plan))]
    if whole or trained:
        return text
    if any(row.zero_output for row in plan):
        return (
            f"{text}\n\n**Train it before use.** Its new layers start without output, so it gives the target's own "
            "logits until it is trained."
        )
    return (
        f"{text}\n\n**Train it before use.** Its layers have not been trained since they were put together, so it "
        "writes worse text than its source until it is trained (healed)."
    )


def _licence(folder: Path) -> dict[str, Any]:
    """Return the licence entries of a model's card, or what its licence file amounts to; empty if there is neither."""
    entries = _metadata(folder / CARD) if (folder / CARD).is_file() else {}
    stated = {key: entries[key] for key in ("license", "license_name", "license_link") if entries.get(key)}
    if "license" in stated:
        return stated
    files = sorted(path.name for pattern in LICENCES[:3] for path in folder.glob(pattern) if path.is_file())
    if files:
        return {"license": "other", "license_name": "license-of-the-source", "license_link": files[0]}
    return {_UNREAD: True} if _UNREAD in entries else {}


def _metadata(card: Path) -> dict[str, Any]:
    """Return the YAML in front of a card; of one that cannot be read, which is warned of, only `_UNREAD`."""
    try:
        return metadata_load(card) or {}
    except (ValueError, OSError, AttributeError, yaml.YAMLError) as error:
        line = f"cannot read the licence in {card}: {reason(error)}; look there yourself"
        warnings.warn(line, InherituneWarning, stacklevel=2)
        return {_UNREAD: True}


def _licence_line(licence: dict[str, Any]) -> str:
    if _UNREAD in licence:
        return "The licence in the source's README.md could not be read: look there."
    if not licence:
        return "The source states no licence."
    name, link = licence["license"], licence.get("license_link")
    terms = f"`{licence.get('license_name', name)}`" if name == "other" else f"`{name}`"
    return f"Carried over from the source: {terms}" + (f" (see {link})." if link else ".")
