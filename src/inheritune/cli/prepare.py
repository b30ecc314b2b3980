"""`inheritune prepare`: text to token shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("prepare")(prepare)


def prepare(
    source: Annotated[
        str, typer.Argument(help="stdlib, a .txt/.jsonl/.parquet file, a folder of them, or hf:NAME[:CONFIG].")
    ],
    tokenizer: Annotated[str, typer.Option(help="A tokenizer or model (folder or hub id), or train:SIZE.")],
    out: Annotated[Path, typer.Option(help="The folder of the shards.")],
    validation: Annotated[str | None, typer.Option(help="A second source, for validation alone.")] = None,
    valid_fraction: Annotated[float, typer.Option(help="Share of the documents for validation.")] = 0.04,
    separator: Annotated[str, typer.Option(help=r"Between two documents of a text file (\n is a line end).")] = r"\n\n",
    field: Annotated[str, typer.Option(help="The field of JSON lines and tables that holds the text.")] = "text",
) -> None:
    """Tokenize text once into shards that every run can share.

    Whole documents, not windows, go to training or validation, by a hash of their path or text.
    """
    from inheritune.cli.console import console, print_table
    from inheritune.data import prepare as prepare_shards

    shards = prepare_shards(
        source,
        out,
        tokenizer,
        validation=validation,
        valid_fraction=valid_fraction,
        separator=separator.replace(r"\n", "\n"),
        field=field,
    )
    splits = shards.manifest["splits"]
    rows = [(name, f"{splits[name]['documents']:,}", f"{splits[name]['tokens']:,}") for name in ("train", "valid")]
    print_table(f"{source}: {shards.vocabulary:,} token ids", ("split", "documents", "tokens"), rows)
    console.print(f"shards: {out}   manifest: {out / 'manifest.json'}", markup=False)
