"""`inheritune report`: one page from the records of finished runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("report")(report)


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN", help="Folders of finished runs, each with a record.json.")
    ],
    out: Annotated[Path, typer.Option("--out", help="The HTML page to write.")] = Path("report.html"),
) -> None:
    """Write one self-contained HTML page that compares finished runs; nothing is trained or loaded."""
    from inheritune.cli.console import console
    from inheritune.report import load_runs, verdict, write_report

    page = write_report(runs, out)
    console.print(verdict(load_runs(runs)).sentence, markup=False)
    console.print(f"page: {page}", markup=False)
