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
    scale: Annotated[str, typer.Option(help="tiny: the bundled reference, for a laptop.")] = "tiny",
    out: Annotated[Path | None, typer.Option(help="The folder; runs/EXPERIMENT-SCALE if not given.")] = None,
) -> None:
    """Run the recipes of a table of the paper and print our numbers beside the published ones."""
    from inheritune.cli.console import console, print_table
    from inheritune.experiments import EXPERIMENTS
    from inheritune.experiments import reproduce as reproduce_table

    record = reproduce_table(experiment, scale, out)
    columns, published = EXPERIMENTS[experiment].columns, record.published
    ours = [record.ours[column] for column in columns]
    models = [ours[0].reference, *ours]
    losses = (_cell(item.evaluation.loss, item.layers) if item else "-" for item in models)
    tokens = (f"{item.tokens / 1e6:.2f}M" if item and item.tokens else "-" for item in models)
    rows = [(f"ours ({scale})", *losses), ("our tokens", *tokens)]
    for row in published["rows"]:
        cells = (row.get(column) or {} for column in ("full", *columns))
        rows.append((f"published, {row['model']}", *(_cell(cell.get("loss"), cell.get("layers")) for cell in cells)))
    print_table(f"{experiment}: {published['quantity']} ({published['where']})", ("", "full", *columns), rows)
    folder = out or Path("runs") / f"{experiment}-{scale}"
    console.print(f"record: {folder / 'record.json'}   report: {folder / 'report.html'}", markup=False, soft_wrap=True)


def _cell(loss: float | None, layers: int | None) -> str:
    """Write a loss in nats a token, with the number of layers where it is known."""
    if loss is None:
        return "-"
    return f"{loss:.3f} ({layers}L)" if layers is not None else f"{loss}"
