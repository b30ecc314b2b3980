"""`inheritune run`: train what a recipe says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("run")(run)


def run(
    recipe: Annotated[Path, typer.Argument(help="A recipe in YAML; examples are in the folder recipes/.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, e.g. training.steps=100.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; runs/NAME if not given.")] = None,
) -> None:
    """Run one recipe: inheritune, scratch, stacking, hybrid-stacking, half-width or distill.

    A run that was stopped (Ctrl-C, SIGTERM, kill) goes on where it was when the same command is given again.
    """
    from inheritune.recipes import run as run_recipe

    record = run_recipe(recipe, out, set_ or [])
    print_run(record, out or Path("runs") / record["name"])


def print_run(record: dict[str, Any], folder: Path) -> None:
    """Print a run's rounds and where its model is."""
    from inheritune.cli.console import console, print_table
    from inheritune.distributed import is_main

    if not is_main():
        return
    rows = [_row(item["name"], item) for item in record["rounds"]]
    if (reference := record["reference"]) is not None:
        rows.insert(0, _row("reference", reference))
    level = f"difference, {record['recipe']['evaluation']['confidence']:.0%} CI"
    columns = ("model", "layers", "weights", "tokens", "loss", level, "match")
    print_table(f"{record['name']} ({record['method']})", columns, rows)
    console.print(f"model: {folder / record['result']['model']}   record: {folder / 'record.json'}", markup=False)


def _row(name: str, item: dict[str, Any]) -> tuple[str, ...]:
    comparison, tokens = item.get("comparison"), item.get("tokens")
    difference = matches = "-"
    if comparison is not None:
        low, high = comparison["ci_low"], comparison["ci_high"]
        difference = f"{comparison['difference']:+.4f} [{low:+.4f}, {high:+.4f}]"
        matches = "yes" if comparison["matches"] else "no"
    return (
        name,
        str(item["layers"]),
        f"{item['parameters'] / 1e6:,.2f}M",
        "-" if tokens is None else f"{tokens / 1e6:,.2f}M",
        f"{item['evaluation']['loss']:.4f}",
        difference,
        matches,
    )
