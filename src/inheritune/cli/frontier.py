"""`inheritune frontier`: several depths from one reference, and what each costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inheritune.cli.console import print_table
from inheritune.cli.options import Changes, PathOption, RecipeSource

if TYPE_CHECKING:
    from inheritune.report.text.tables import Table


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
    _print(frontier_table(record), f"{record.name} ({record.trained})")
    typer.echo(frontier_verdict(record))
    typer.echo(f"chart: {chart}   record: {folder / FRONTIER}   page: inheritune report {folder}")


def _print(table: Table, title: str) -> None:
    """Print the page's table on lines of 80 characters: two values in a cell where they belong together."""
    columns = ["layers", "weights,\nmemory", "loss cut,\ntrained", table.columns[6].replace(", ", ",\n")]
    columns += ["times\nas fast", "tokens\nto match"]
    rows = [
        (layers.replace(" ", "\n"), f"{weights}\n{memory.splitlines()[0]}", f"{cut}\n{loss}", difference, fast, match)
        for layers, _, weights, memory, cut, loss, difference, _, fast, _, match in table.rows
    ]
    print_table(title, columns, rows)
