"""The reference page of recipes, `docs/recipes.md`, made from the schema and the registry.

python -m inheritune.recipes.reference > docs/recipes.md
"""

from __future__ import annotations

import inspect
import json
import re
import types
import typing
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from inheritune.recipes.loading import library, summary_of
from inheritune.recipes.registry import METHODS, OWN_SETTINGS
from inheritune.recipes.schema import Recipe

HEAD = """# Recipes

A recipe is a YAML file (or a dict, or a `Recipe`) that says all that decides a run's result. `inheritune plan RECIPE`
says what it takes, `inheritune run RECIPE` does it, `--set training.steps=100` changes a setting, in Python
`it.plan(recipe)` and `it.run(recipe)`. This page is made from the code:
`python -m inheritune.recipes.reference > docs/recipes.md`.
"""


def reference_page() -> str:
    """Return the page as Markdown."""
    parts = [HEAD, _library(), _methods()]
    parts.append("## Settings\n\nA setting of another method is refused. Losses are in nats a token.\n")
    parts.append(_table(Recipe, ""))
    for name, field in Recipe.model_fields.items():
        if (part := _part_of(field.annotation)) is not None and name != "layers":
            parts.append(f"### `{name}`\n\n{_lead(part)}\n\n{_table(part, f'{name}.')}")
    return "\n".join(parts)


def _library() -> str:
    rows = [f"| `{name}` | {summary_of(path)} |" for name, path in library().items()]
    return "## Shipped recipes\n\n| name | what it is |\n|---|---|\n" + "\n".join(rows) + "\n"


def _methods() -> str:
    rows = [
        f"| `{name}` | {method.summary} | {', '.join(f'`{key}`' for key in OWN_SETTINGS if key in method.takes)} |"
        for name, method in METHODS.items()
    ]
    return "## Methods\n\n| method | what it does | settings of its own |\n|---|---|---|\n" + "\n".join(rows) + "\n"


def _table(model: type[BaseModel], prefix: str) -> str:
    """Return a table of a part's plain settings: key, type, default, and what its docstring says of it."""
    said = _attributes(model)
    rows = [
        f"| `{prefix}{name}` | {_type(field.annotation)} | {_default(field)} | {said[name]} |"
        for name, field in model.model_fields.items()
        if name == "layers" or _part_of(field.annotation) is None
    ]
    return "| key | type | default | meaning |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"


def _part_of(annotation: Any) -> type[BaseModel] | None:
    """Return the settings class of a part of a recipe, None for a plain value."""
    options = [annotation, *typing.get_args(annotation)]
    return next((kind for kind in options if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _lead(model: type[BaseModel]) -> str:
    """Return what a docstring says before its attributes, on one line."""
    return " ".join((inspect.getdoc(model) or "").partition("\n\nAttributes:")[0].split())


def _attributes(model: type[BaseModel]) -> dict[str, str]:
    """Return what the docstrings of a settings class and of its bases say of each attribute."""
    said: dict[str, str] = {}
    for kind in reversed(model.__mro__):
        text = (kind.__doc__ or "").partition("Attributes:\n")[2]
        for name, meaning in re.findall(r"^ {8}(\w+): (.*?)(?=^ {8}\w|^ {4}\S|\Z)", text, re.MULTILINE | re.DOTALL):
            said[name] = re.sub(r"\bNone\b", "null", " ".join(meaning.split())).replace("|", "\\|")
    return said


def _type(annotation: Any) -> str:
    """Return a type in words that a writer of YAML knows."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{choice}`" for choice in inner)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_type, inner)))
    if origin is typing.Annotated:
        return _type(inner[0])
    if origin in (tuple, list):
        return f"list of {_type(inner[0])}"
    if origin is dict:
        return "mapping"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "mapping"
    words = {str: "text", int: "whole number", float: "number", bool: "true or false", types.NoneType: "null"}
    return words.get(annotation, str(annotation))


def _default(field: FieldInfo) -> str:
    return "required" if field.is_required() else f"`{json.dumps(field.get_default())}`"


if __name__ == "__main__":
    print(reference_page(), end="")  # noqa: T201 - the page itself
