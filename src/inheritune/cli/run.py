"""`inheritune run`: train what a recipe says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inheritune.errors import OutputError, RecipeError

if TYPE_CHECKING:
    from inheritune.records.runs import ReferenceRecord, RoundRecord, RunRecord

Changes = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, e.g. training.steps=100.")
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("run")(run)


def run(
    recipe: Annotated[
        str | None, typer.Argument(help="A recipe in YAML, or the name of one that the package ships (--list).")
    ] = None,
    set_: Changes = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; runs/NAME if not given.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the recipes that the package ships, and stop.")] = False,
    push_to: Annotated[
        str | None, typer.Option(metavar="USER/NAME", help="Upload the result to the hub, with its model card.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="With --push-to: a private repository.")] = False,
) -> None:
    """Run one recipe: train a model by a method, and compare it with its reference.

    A run that was stopped (Ctrl-C, SIGTERM, kill) goes on where it was when the same command is given again.
    """
    if list_:
        print_library()
        return
    from inheritune.checkpoints import hub
    from inheritune.cli.console import console
    from inheritune.distributed import from_main
    from inheritune.recipes import run as run_recipe

    if recipe is None:
        raise RecipeError("no recipe given: expected a YAML file or a name that inheritune run --list shows")
    if private and push_to is None:
        raise OutputError("--private is for an upload: pass --push-to USER/NAME")
    if push_to is not None:
        from_main(lambda: hub.check_push(push_to))
    record = run_recipe(recipe, out, set_ or [])
    folder = out or Path("runs") / record.name
    print_run(record, folder)
    if push_to is not None and record.result.model is not None:
        model = folder / record.result.model
        url = from_main(lambda: hub.push(model, push_to, private=private))
        console.print(f"uploaded: {url}", markup=False, soft_wrap=True)


def print_library() -> None:
    """Print the recipes that the package ships."""
    from inheritune.cli.console import console
    from inheritune.recipes import library, summary_of

    for name, path in library().items():
        console.print(f"{name:20}{summary_of(path)}", markup=False, soft_wrap=True)


def print_run(record: RunRecord, folder: Path) -> None:
    """Print a run's rounds and where its model is."""
    from inheritune.cli.console import console, print_table
    from inheritune.cli.evaluate import speed_line
    from inheritune.distributed import is_main

    if not is_main():
        return
    rows = [_row(item.name, item) for item in record.rounds]
    if record.reference is not None:
        rows.insert(0, _row("reference", record.reference))
    level = f"difference, {record.recipe['evaluation']['confidence']:.0%} CI"
    columns = ("model", "layers", "weights", "tokens", "loss", level, "match")
    print_table(f"{record.name} ({record.method})", columns, rows)
    if record.result.speed_ratio is not None and record.result.speed is not None:
        line = speed_line(record.result.speed_ratio, record.result.speed)
        console.print(line, markup=False, soft_wrap=True)
    place = f"model: {folder / (record.result.model or '')}   record: {folder / 'record.json'}"
    console.print(place, markup=False, soft_wrap=True)


def _row(name: str, item: RoundRecord | ReferenceRecord) -> tuple[str, ...]:
    comparison = item.get("comparison")
    difference = matches = "-"
    if comparison is not None:
        difference = f"{comparison.difference:+.4f} [{comparison.ci_low:+.4f}, {comparison.ci_high:+.4f}]"
        matches = "yes" if comparison.matches else "no"
    return (
        name,
        str(item.layers),
        f"{item.parameters / 1e6:,.2f}M",
        "-" if item.tokens is None else f"{item.tokens / 1e6:,.2f}M",
        f"{item.evaluation.loss:.4f}",
        difference,
        matches,
    )
