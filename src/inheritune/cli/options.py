"""Options that several commands take, and the one place where a path that a user gave is read."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from inheritune.errors import OutputError
from inheritune.storage import user_path


def read_path(text: str | Path) -> Path:
    """Return a path with `~` replaced; one that is empty, which would be the current folder, is refused."""
    try:
        return user_path(text)
    except OutputError as error:
        raise typer.BadParameter(str(error)) from error  # typer puts the name of the option before it


def read_source(name: str) -> str:
    """Return a path with `~` replaced, else the name as it is: `a` may be on the hub where `./a` is a folder."""
    path = read_path(name)
    return str(path) if name.startswith("~") else name


SourceArgument = partial(typer.Argument, parser=read_source)
PathOption = partial(typer.Option, parser=read_path, metavar="PATH")
SourceOption = partial(typer.Option, parser=read_source, metavar="SOURCE")
Model = Annotated[
    str,
    SourceArgument(
        metavar="MODEL",
        help="A folder in Hugging Face format, the folder of a finished run, a GGUF file, a hub id, or stdlib or "
        "stdlib-small, which are shipped.",
    ),
]
RecipeSource = Annotated[
    str,
    SourceArgument(metavar="RECIPE", help="A recipe in YAML, or the name of one that the package ships (run --list)."),
]
SEPARATOR = r"\n\n"
Separator = Annotated[
    str,
    typer.Option(
        help=r"Between two documents of a text file (\n is a line end).",
        callback=lambda text: text.replace(r"\n", "\n"),
        show_default="a blank line",
    ),
]
Field = Annotated[str, typer.Option(help="The field of JSON lines and tables that holds the text.")]
Changes = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, e.g. training.steps=100.")
]
PushTo = Annotated[
    str | None, typer.Option(metavar="USER/NAME", help="Upload the new model to the hub, with its model card.")
]
Private = Annotated[bool, typer.Option("--private", help="With --push-to: a private repository.")]
