"""Recipes from YAML, dicts, the package's own library and `--set`, with all problems of a recipe said together."""

import re
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from inheritune.errors import RecipeError, nearest
from inheritune.recipes.schema import Recipe
from inheritune.records.base import problem_text
from inheritune.storage import user_path

LIBRARY = Path(__file__).with_name("library")
_KIND = re.compile(r"(int|str)$|constrained|.*\[")
"""What pydantic puts into a place for a kind of value, where several are allowed."""


def library() -> dict[str, Path]:
    """Return the files of the recipes that the package ships, by name."""
    return {path.stem: path for path in sorted(LIBRARY.glob("*.yaml"))}


def summary_of(path: Path) -> str:
    """Return the first line of a recipe, a comment that says what it is."""
    return path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")


def load_recipe(source: Recipe | Mapping[str, Any] | str | Path, changes: Iterable[str] = ()) -> Recipe:
    """Return the recipe that `source` describes, with `changes` applied.

    Args:
        source: a recipe, its settings as a dict, the path of a YAML file, or the name of a recipe that the package
            ships.
        changes: `key=value` with dots for nested keys, the value in YAML, for example `training.steps=100`.

    Raises:
        RecipeError: the file cannot be read, or the settings are wrong; the line names every problem.
    """
    import inheritune.recipes.methods  # noqa: F401 - which a recipe may name; to list recipes takes no torch

    if not isinstance(source, Recipe | Mapping | str | Path):
        raise RecipeError(f"the recipe is a {type(source).__name__}: expected a file, a name, a dict or a Recipe")
    settings = source.as_json() if isinstance(source, Recipe) else source
    settings = dict(settings) if isinstance(settings, Mapping) else _read_yaml(str(settings))
    for change in changes:
        _apply(settings, change)
    try:
        return Recipe.model_validate(settings)
    except ValidationError as error:
        problems = "; ".join(_problem(item) for item in error.errors() if not _follows(item))
        name = source if isinstance(source, str | Path) else "the recipe"
        raise RecipeError(f"{name}: {problems}") from error


def _read_yaml(source: str) -> dict[str, Any]:
    """Read the file that a path or the name of a shipped recipe stands for; a file of that name comes first."""
    path, shipped = user_path(source, RecipeError), library()
    path = path if path.exists() else shipped.get(source, path)
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        hint = nearest(source, [*map(str, path.parent.glob("*.y*ml")), *shipped])
        raise RecipeError(f"no recipe {path}: expected a YAML file or one of {', '.join(shipped)}{hint}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"cannot read {path} as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise RecipeError(f"{path} is not a recipe: expected keys and values")
    return settings


def _apply(settings: dict[str, Any], change: str) -> None:
    key, equals, value = change.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set {change!r}: expected key=value, for example training.steps=100")
    *parents, last = key.strip().split(".")
    for parent in parents:
        inner = settings.get(parent)
        settings[parent] = dict(inner) if isinstance(inner, Mapping) else {}
        settings = settings[parent]
    try:
        settings[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {change!r}: the value is not YAML") from error


def _follows(item: Any) -> bool:
    """Tell whether a list is called too short only because its items, which are named too, are wrong."""
    return item["type"] == "too_short" and len(item["input"]) >= item["ctx"]["min_length"]


def _problem(item: Any) -> str:
    """Return one problem as text: the key, what is wrong, what was expected."""
    where = ".".join(part for part in map(str, item["loc"]) if not _KIND.match(part))
    message, given = problem_text(item), repr(item["input"])
    if item["type"] == "extra_forbidden":
        model: type[BaseModel] | None = Recipe
        for part in item["loc"][:-1]:
            model = part_of(model.model_fields[part].annotation) if model else None
        choices = list(model.model_fields) if model else []
        where = ".".join(map(str, item["loc"]))
        return f"unknown key {where!r}: expected one of {', '.join(choices)}{nearest(str(item['loc'][-1]), choices)}"
    if item["type"] == "missing":
        return f"{where} is missing"
    if item["type"] == "literal_error":
        given += nearest(str(item["input"]), re.findall(r"'([^']*)'", message))
    if not where:
        return message
    named = isinstance(item["input"], Mapping) or (item["type"] == "value_error" and given in message)
    return f"{where}: {message}{'' if named else f', not {given}'}"


def part_of(annotation: Any) -> type[BaseModel] | None:
    """Return the settings class of a part of a recipe, None for a plain value."""
    options = [annotation, *typing.get_args(annotation)]
    return next((kind for kind in options if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
