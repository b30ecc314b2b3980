"""The commands that take a recipe: `run` trains it, `plan` says what that takes, `frontier` what each depth costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inheritune.cli.console import print_table
from inheritune.cli.evaluate import speed_line
from inheritune.cli.options import Changes, PathOption, Private, PushTo, RecipeSource, SourceArgument
from inheritune.errors import OutputError, RecipeError

if TYPE_CHECKING:
    from inheritune.records.runs import ReferenceRecord, RoundRecord, RunRecord

PARTS = {
    "training": "weights, gradients and optimiser",
    "reference": "reference",
    "logits": "logits",
    "activations": "activations",
    "libraries": "Python and its libraries",
}
"""What takes memory, in words."""
SPARE = 1.2
"""What a training may take for an estimate of 1; up to 1.11 was measured: allocators keep some as well."""


def run(
    recipe: Annotated[
        str | None,
        SourceArgument(metavar="RECIPE", help="A recipe in YAML, or the name of one that the package ships (--list)."),
    ] = None,
    set_: Changes = None,
    out: Annotated[Path | None, PathOption(help="The run's folder; runs/NAME if not given.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the recipes that the package ships, and stop.")] = False,
    push_to: PushTo = None,
    private: Private = False,
) -> None:
    """Run one recipe: train a model by a method, and compare it with its reference.

    A run that was stopped (Ctrl-C, SIGTERM, kill) goes on where it was when the same command is given again.
    """
    from inheritune.recipes import library, summary_of

    if list_:
        for name, path in library().items():
            typer.echo(f"{name:20}{summary_of(path)}")
        return
    from inheritune.checkpoints import hub
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
        typer.echo(f"uploaded: {url}")


def print_run(record: RunRecord, folder: Path) -> None:
    """Print a run's rounds and where its model is."""
    from inheritune.distributed import is_main

    if not is_main():
        return
    rows = [_row(item.name, item) for each in record.rounds for item in each.ends]
    if record.reference is not None:
        rows.insert(0, _row("reference", record.reference))
    level = f"difference, {record.recipe['evaluation']['confidence']:.0%} CI"
    columns = ("model", "layers", "weights", "tokens", "loss", level, "match")
    print_table(f"{record.name} ({record.trained})", columns, rows)
    if record.result.speed_ratio is not None and record.result.speed is not None:
        typer.echo(speed_line(record.result.speed_ratio, record.result.speed))
    model = f"{record.name} is {record.shipped}" if record.shipped else f"model: {folder / (record.result.model or '')}"
    typer.echo(f"{model}   record: {folder / 'record.json'}")


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


def plan(
    recipe: RecipeSource,
    set_: Changes = None,
    out: Annotated[Path | None, PathOption(help="Write the plan as JSON to this file.")] = None,
) -> None:
    """Check a recipe and estimate what it takes, at worst; nothing is downloaded, prepared or trained."""
    from inheritune.recipes import plan as plan_recipe

    cost = plan_recipe(recipe, set_ or [])
    for note in cost.notes:
        typer.echo(f"note: {note}")
    rows = []
    for i, item in enumerate(cost.rounds, 1):
        taken = f": {item.reference_layers} of the reference" if item.reference_layers else ""
        size = (str(item.layers), f"{item.parameters:,}", f"{item.tokens:,}")
        rows.append((f"round {i}{taken}", *size, time_span(item.seconds)))
    columns = ("", "layers", "parameters", "tokens", "time (rough)")
    print_table(f"{cost.name} ({cost.method}), at most", columns, rows)
    need, free = cost.memory_bytes / 1e9, cost.memory_available_bytes / 1e9
    advice = "lower training.micro_batch or use a smaller target"
    fits = "fits" if SPARE * need < free else f"{'may' if need < free else 'does'} not fit: {advice}"
    said = [] if cost.memory is None else [f"{cost.memory[key] / 1e9:.2f} {text}" for key, text in PARTS.items()]
    typer.echo(f"{cost.tokens:,} tokens, about {time_span(cost.seconds)} of training here")
    typer.echo(f"memory about {need:.2f} GB ({', '.join(said)}) of {free:.1f} GB free: {fits}")
    if out is not None:
        cost.write(out)


def time_span(seconds: float) -> str:
    """Write a rough time span in the unit a person would use: `40 s`, `12.5 minutes`, `4.3 days`."""
    for unit, size in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def frontier(
    recipe: RecipeSource,
    set_: Changes = None,
    out: Annotated[Path | None, PathOption(help="The folder; runs/NAME if not given.")] = None,
) -> None:
    """Train several depths (frontier.depths) from one reference on equal tokens: what each costs.

    Where it was stopped (Ctrl-C, SIGTERM, kill) it goes on when the same command is given again.
    """
    from inheritune.distributed import is_main
    from inheritune.recipes.frontier import frontier as run_frontier

    record = run_frontier(recipe, out, set_ or [])
    if not is_main():
        return
    from inheritune.report.charts.base import save_chart
    from inheritune.report.charts.frontier import frontier as draw
    from inheritune.report.text.frontier import frontier_table, frontier_verdict
    from inheritune.storage import FRONTIER

    folder = out or Path("runs") / record.name
    chart, _ = save_chart(draw(record), folder, "frontier")
    table = frontier_table(record)
    # The page's table on lines of 80 characters: two values in a cell where they belong together.
    columns = ["layers", "weights,\nmemory", "loss cut,\ntrained", table.columns[6].replace(", ", ",\n")]
    columns += ["times\nas fast", "tokens\nto match"]
    rows = [
        (layers.replace(" ", "\n"), f"{weights}\n{memory.splitlines()[0]}", f"{cut}\n{loss}", difference, fast, match)
        for layers, _, weights, memory, cut, loss, difference, _, fast, _, match in table.rows
    ]
    print_table(f"{record.name} ({record.trained})", columns, rows)
    typer.echo(frontier_verdict(record))
    typer.echo(f"chart: {chart}   record: {folder / FRONTIER}   page: inheritune report {folder}")
