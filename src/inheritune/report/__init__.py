"""One self-contained HTML page from records on disk; nothing here trains a model or loads one."""

from __future__ import annotations

from inheritune.report.load import Run, load_runs
from inheritune.report.page import write_report
from inheritune.report.verdict import Verdict, verdict

__all__ = ["Run", "Verdict", "load_runs", "verdict", "write_report"]
