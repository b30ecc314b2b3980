"""Recipes from YAML, dicts, the package's own library and `--set`, with all problems of a recipe said together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from inheritune.errors import RecipeError, nearest
from inheritune.recipes.schema import Recipe

LIBRARY = Path(__file__).with_name("library")
"""The recipes that the package ships."""


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
    if isinstance(source, Recipe):
        settings: dict[str, Any] = source.model_dump(mode="json")
    elif isinstance(source, Mapping):
        settings = dict(source)
    else:
        settings = _read_yaml(_file_of(source))
    for change in changes:
        _apply(settings, change)
    try:
        return Recipe.model_validate(settings)
    except ValidationError as error:
        problems = "; ".join(_problem(item) for item in error.errors())
        name = source if isinstance(source, str | Path) else "the recipe"
        raise RecipeError(f"{name}: {problems}") from error


def _file_of(source: str | Path) -> Path:
    """Return the file that a path or the name of a shipped recipe stands for; a file of that name comes first."""
    path = Path(source)
    return path if path.exists() else library().get(str(source), path)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        files = [str(path.parent / item.name) for item in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        known = f"a YAML file or one of {', '.join(library())}"
        raise RecipeError(f"no recipe {path}: expected {known}{nearest(str(path), [*files, *library()])}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"cannot read {path} as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise RecipeError(f"{path} is not a recipe: expected keys and values")
    return settings


def _apply(settings: dict[str, Any], change: str) -> None:
    """Set one dotted key."""
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


def _problem(item: Any) -> str:
    """Return one problem as text: the key, what is wrong, what was expected."""
    where = ".".join(str(part) for part in item["loc"] if not str(part).startswith("constrained"))
    if item["type"] == "extra_forbidden":
        choices = list(_model_at(item["loc"][:-1]).model_fields)
        return f"unknown key {where!r}: expected one of {', '.join(choices)}{nearest(str(item['loc'][-1]), choices)}"
    if item["type"] == "missing":
        return f"{where} is missing"
    if item["type"] == "literal_error":
        choices = re.findall(r"'([^']*)'", item["ctx"]["expected"])
        hint = nearest(str(item["input"]), choices)
        return f"{where}: input should be {item['ctx']['expected']}, not {item['input']!r}{hint}"
    message = item["msg"].removeprefix("Value error, ")
    if not where:
        return message
    named = isinstance(item["input"], Mapping) or repr(item["input"]) in message
    given = "" if named else f", not {item['input']!r}"
    return f"{where}: {message[0].lower()}{message[1:]}{given}"


def _model_at(location: tuple[str | int, ...]) -> type[BaseModel]:
    """Return the settings class at a place in the recipe."""
    model: type[BaseModel] = Recipe
    for part in location:
        inner = model.model_fields[str(part)].annotation
        options = [inner, *getattr(inner, "__args__", ())]
        model = next(option for option in options if isinstance(option, type) and issubclass(option, BaseModel))
    return model
