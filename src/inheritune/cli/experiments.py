"""`inheritune quickstart`, the whole story in one command; `reproduce`, a table of the paper beside our numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from inheritune.cli.console import print_table
from inheritune.cli.options import Changes, PathOption
from inheritune.cli.run import print_run


def quickstart(
    out: Annotated[Path, PathOption(help="The folder of everything it writes.")] = Path("runs/quickstart"),
    set_: Changes = None,
    live: Annotated[
        bool, typer.Option("--live", help="Train the baselines here too, as --set does, in place of shipped records.")
    ] = False,
) -> None:
    """Measure what a small trained model's layers cost, cut and heal it, compare, and write a report.

    Nothing is downloaded. Takes under ten minutes on two cores; stopped and started again, it goes on where it was.
    """
    from inheritune.experiments import quickstart as tell
    from inheritune.records.base import read_record
    from inheritune.records.runs import RunRecord
    from inheritune.storage import RECORD

    record = tell(out, set_ or [], live)
    for name in record.runs:
        print_run(read_record(out / name / RECORD, RunRecord), out / name)
    typer.echo(record.verdict)
    typer.echo(f"report: {out / record.report}")


def reproduce(
    experiment: Annotated[str, typer.Argument(help="table2 or table5.")],
    scale: Annotated[str, typer.Option(help="tiny: the bundled reference, for a laptop.")] = "tiny",
    out: Annotated[Path | None, PathOption(help="The folder; runs/EXPERIMENT-SCALE if not given.")] = None,
) -> None:
    """Run the recipes of a table of the paper and print our numbers beside the published ones."""
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
    typer.echo(f"record: {folder / 'record.json'}   report: {folder / 'report.html'}")


def _cell(loss: float | None, layers: int | None) -> str:
    """Write a loss in nats a token, with the number of layers where it is known."""
    if loss is None:
        return "-"
    return f"{loss:.3f} ({layers}L)" if layers is not None else f"{loss}"
