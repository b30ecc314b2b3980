"""`inheritune quickstart`: the whole story in one command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from inheritune.cli.run import Changes


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("quickstart")(quickstart)


def quickstart(
    out: Annotated[Path, typer.Option(help="The folder of everything it writes.")] = Path("runs/quickstart"),
    set_: Changes = None,
) -> None:
    """Analyse a small trained model, inherit and grow a smaller one until it matches, compare, and write a report.

    Nothing is downloaded. Takes about ten minutes on two cores; stopped and started again, it goes on where it was.
    """
    from inheritune.cli.console import console
    from inheritune.cli.run import print_run
    from inheritune.experiments import quickstart as tell
    from inheritune.records.base import read_record
    from inheritune.records.runs import RunRecord
    from inheritune.storage import RECORD

    record = tell(out, set_ or [])
    for name in record.runs:
        print_run(read_record(out / name / RECORD, RunRecord), out / name)
    console.print(record.verdict, markup=False)
    console.print(f"report: {out / record.report}", markup=False, soft_wrap=True)
