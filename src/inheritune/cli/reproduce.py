"""`inheritune reproduce`: a table of the paper, ours beside the published numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("reproduce")(reproduce)


def reproduce(
    experiment: Annotated[str, typer.Argument(help="table2 or table5.")],
    scale: Annotated[str, typer.Option(help="tiny, small or paper.")] = "tiny",
    out: Annotated[Path | None, typer.Option(help="The folder; runs/EXPERIMENT-SCALE if not given.")] = None,
) -> None:
    """Run the recipes of a table of the paper and print our numbers beside the published ones."""
    from inheritune.cli.console import console, print_table
    from inheritune.experiments import EXPERIMENTS
    from inheritune.experiments import reproduce as reproduce_table

    record = reproduce_table(experiment, scale, out)
    columns, published = EXPERIMENTS[experiment].columns, record["published"]
    full = next(iter(record["ours"].values()))["reference"]
    rows = [(f"ours ({scale})", _cell(full, full["evaluation"]["loss"]), *(_ours(record["ours"][c]) for c in columns))]
    for row in published["rows"]:
        rows.append((f"published, {row['model']}", *(_cell(row.get(c), None) for c in ("full", *columns))))
    print_table(f"{experiment}: {published['quantity']} ({published['where']})", ("", "full", *columns), rows)
    folder = out or Path("runs") / f"{experiment}-{scale}"
    console.print(f"record: {folder / 'record.json'}   report: {folder / 'report.html'}", markup=False)


def _ours(result: dict[str, object]) -> str:
    evaluation = result["evaluation"]
    return _cell(result, evaluation["loss"] if isinstance(evaluation, dict) else None)


def _cell(item: dict[str, object] | None, loss: float | None) -> str:
    if item is None:
        return "-"
    value = loss if loss is not None else item["loss"]
    return f"{value:.3f} ({item['layers']}L)" if "layers" in item else f"{value}"
