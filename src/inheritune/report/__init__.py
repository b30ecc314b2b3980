"""One self-contained HTML page from records on disk; nothing here trains a model or loads one."""

from __future__ import annotations

from inheritune.report.figures import save_figures
from inheritune.report.findings import opening
from inheritune.report.load import Run, Sources, load, load_runs
from inheritune.report.page import check_page, write_report
from inheritune.report.verdict import Verdict, verdict

__all__ = [
    "Run",
    "Sources",
    "Verdict",
    "check_page",
    "load",
    "load_runs",
    "opening",
    "save_figures",
    "verdict",
    "write_report",
]
