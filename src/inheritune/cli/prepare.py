"""`inheritune prepare`: text to token shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from inheritune.cli.console import print_table
from inheritune.cli.options import SEPARATOR, Field, PathOption, Separator, SourceArgument, SourceOption


def prepare(
    source: Annotated[
        str,
        SourceArgument(
            metavar="SOURCE",
            help="stdlib, a .txt, .jsonl, .json, .csv, .tsv or .parquet file (packed too), a folder of such files, or "
            "hf:NAME[:CONFIG] for a data set of the hub.",
        ),
    ],
    tokenizer: Annotated[str, SourceOption(help="A model's or tokenizer's folder or hub id, stdlib, or train:SIZE.")],
    out: Annotated[Path, PathOption(help="The folder of the shards.")],
    validation: Annotated[str | None, SourceOption(help="A second source, for validation alone.")] = None,
    valid_fraction: Annotated[float, typer.Option(help="Share for validation, without --validation.")] = 0.04,
    separator: Separator = SEPARATOR,
    field: Field = "text",
) -> None:
    """Tokenize text once into shards that every run can share; the same command again reuses them.

    Whole documents, not windows, go to training or validation, by a hash of their path or text.
    """
    from inheritune.data import prepare as prepare_shards

    shards = prepare_shards(
        source,
        out,
        tokenizer,
        validation=validation,
        valid_fraction=valid_fraction,
        separator=separator,
        field=field,
    )
    splits = shards.manifest.splits
    rows = [(name, f"{part.documents:,}", f"{part.tokens:,}") for name, part in splits]
    print_table(f"{source}: {shards.vocabulary:,} token ids", ("split", "documents", "tokens"), rows)
    typer.echo(f"shards: {out}   manifest: {out / 'manifest.json'}")
