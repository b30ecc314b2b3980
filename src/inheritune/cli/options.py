"""Options that several commands take."""

from __future__ import annotations

from typing import Annotated

import typer

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A folder in Hugging Face format, the folder of a finished run, a hub id, or stdlib: the shipped model.",
    ),
]
SEPARATOR = r"\n\n"


def _with_line_ends(text: str) -> str:
    return text.replace(r"\n", "\n")


Separator = Annotated[
    str,
    typer.Option(
        help=r"Between two documents of a text file (\n is a line end).",
        callback=_with_line_ends,
        show_default="a blank line",
    ),
]
Field = Annotated[str, typer.Option(help="The field of JSON lines and tables that holds the text.")]
