"""`inheritune plan`: what a recipe would cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("plan")(plan)


def plan(
    recipe: Annotated[Path, typer.Argument(help="A recipe in YAML.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, e.g. training.steps=100.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the plan as JSON to this file.")] = None,
) -> None:
    """Check a recipe and estimate what it takes, at worst; nothing is downloaded, prepared or trained."""
    from inheritune.cli.console import console, print_table
    from inheritune.recipes import load_recipe
    from inheritune.recipes.preflight import preflight
    from inheritune.storage import write_json

    cost = preflight(load_recipe(recipe, set_ or []))
    rows = [
        (f"round {i}", item["layers"], f"{item['parameters']:,}", f"{item['tokens']:,}", f"{item['seconds'] / 60:.1f}")
        for i, item in enumerate(cost["rounds"], 1)
    ]
    columns = ("", "layers", "parameters", "tokens", "minutes (rough)")
    print_table(f"{cost['name']} ({cost['method']}), at most", columns, rows)
    need, free = cost["memory_bytes"] / 1e9, cost["memory_available_bytes"] / 1e9
    fits = "fits" if need < free else "does not fit: lower training.micro_batch or use a smaller target"
    console.print(
        f"{cost['tokens']:,} tokens, about {cost['seconds'] / 60:.1f} minutes of training here; "
        f"memory {need:.2f} GB of {free:.1f} GB free, activations not counted: {fits}"
    )
    if out is not None:
        write_json(out, cost)
