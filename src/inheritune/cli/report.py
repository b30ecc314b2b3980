"""`inheritune report`: one page from the records of finished runs and analyses."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from inheritune.cli.options import PathOption, read_path


def report(
    paths: Annotated[
        list[Path],
        typer.Argument(
            parser=read_path,
            metavar="PATH",
            help="Folders of finished runs, frontiers or analyses (spectra.json).",
        ),
    ],
    out: Annotated[Path, PathOption(help="The HTML page to write.")] = Path("report.html"),
    figures: Annotated[
        Path | None,
        PathOption(metavar="DIR", help="Write every chart as SVG and PNG files into this folder too."),
    ] = None,
) -> None:
    """Write one self-contained HTML page on finished runs and analyses; nothing is trained or loaded."""
    from inheritune.report import check_page, load, opening, save_figures, write_report

    opened = opening(load(paths))
    check_page(out)
    # The folder is claimed before the page is written: the page may lie in it, and a wrong folder must leave no page.
    files = None if figures is None else save_figures(paths, figures)
    page = write_report(paths, out)
    for line in (opened.sentence, *opened.cautions, *opened.steps, f"page: {page}"):
        typer.echo(str(line))
    if files is not None:
        typer.echo(f"figures: {len(files)} files in {figures}")
