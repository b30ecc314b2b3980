"""The reference page of recipes, `docs/recipes.md`, made from the schema and the registry.

python -m inheritune.recipes.reference > docs/recipes.md
"""

import inspect
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel

from inheritune.recipes.loading import library, part_of, summary_of
from inheritune.recipes.methods import METHODS
from inheritune.recipes.schema import Recipe

HEAD = """# Recipes

A recipe is a YAML file (or a dict, or a `Recipe`) that says all that decides a run's result. `inheritune plan RECIPE`
says what it takes, `inheritune run RECIPE` does it, `--set training.steps=100` changes a setting, in Python
`it.plan(recipe)` and `it.run(recipe)`. This page is made from the code:
`python -m inheritune.recipes.reference > docs/recipes.md`.

`inheritune frontier RECIPE` does a recipe once for each of several depths; see [measures.md](measures.md#the-frontier).
"""

WORDS = {
    "string": "text",
    "integer": "whole number",
    "boolean": "true or false",
    "number": "number",
    "null": "null",
    "array": "list",
}
"""The types of JSON as a writer of YAML knows them."""


def reference_page() -> str:
    """Return the page as Markdown."""
    recipes = [(f"`{name}`", summary_of(path)) for name, path in library().items()]
    methods = [
        (f"`{name}`", method.summary, ", ".join(f"`{key}`" for key in Recipe.model_fields if key in method.takes))
        for name, method in METHODS.items()
    ]
    said = "A setting of another method is refused. Losses are in nats a token."
    sections = [
        f"## Shipped recipes\n\n{_table(('name', 'what it is'), recipes)}",
        f"## Methods\n\n{_table(('method', 'what it does', 'settings of its own'), methods)}",
        f"## Settings\n\n{said}\n\n{_settings(Recipe)}",
    ]
    for name, field in Recipe.model_fields.items():
        if (part := part_of(field.annotation)) is not None and name != "layers":
            lead = " ".join((inspect.getdoc(part) or "").partition("\n\nAttributes:")[0].split())
            sections.append(f"### `{name}`\n\n{lead}\n\n{_settings(part, f'{name}.')}")
    return "\n".join([HEAD, *sections])


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head, *body = (f"| {' | '.join(row)} |\n" for row in (columns, *rows))
    return f"{head}|{'---|' * len(columns)}\n{''.join(body)}"


def _settings(model: type[BaseModel], prefix: str = "") -> str:
    """Return a table of a part's plain settings: key, type, default, and what its docstring says of it."""
    said = _attributes(model)
    rows = [
        (
            f"`{prefix}{name}`",
            _type(field),
            f"`{json.dumps(field['default'])}`" if "default" in field else "required",
            said[name],
        )
        for name, field in model.model_json_schema()["properties"].items()
        if name == "layers" or part_of(model.model_fields[name].annotation) is None
    ]
    return _table(("key", "type", "default", "meaning"), rows)


def _attributes(model: type[BaseModel]) -> dict[str, str]:
    """Return what the docstrings of a settings class and of its bases say of each attribute."""
    said: dict[str, str] = {}
    for kind in reversed(model.__mro__):
        text = (kind.__doc__ or "").partition("Attributes:\n")[2]
        for name, meaning in re.findall(r"^ {8}(\w+): (.*?)(?=^ {8}\w|^ {4}\S|\Z)", text, re.MULTILINE | re.DOTALL):
            said[name] = re.sub(r"\bNone\b", "null", " ".join(meaning.split())).replace("|", "\\|")
    return said


def _type(field: dict[str, Any]) -> str:
    """Return the type of a setting in words, from its JSON schema."""
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(map(_type, field["anyOf"])))
    if "enum" in field:
        return " or ".join(f"`{choice}`" for choice in field["enum"])
    return f"list of {_type(field['items'])}" if "items" in field else WORDS.get(field.get("type", ""), "mapping")


if __name__ == "__main__":
    print(reference_page(), end="")  # noqa: T201 - the page itself
