"""One self-contained HTML page from records on disk; nothing here trains a model or loads one."""

from __future__ import annotations

import sys
import types
from typing import Any

from inheritune.report.page.save import check_page, save_figures, write_report
from inheritune.report.read.folders import load_runs
from inheritune.report.read.models import load
from inheritune.report.text.findings import opening
from inheritune.report.text.verdict import verdict

__all__ = ["check_page", "load", "load_runs", "opening", "save_figures", "verdict", "write_report"]


class _Callable(types.ModuleType):
    """`inheritune.report` is this package and, in the public names, a function: both have to work."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return write_report(*arguments, **options)


sys.modules[__name__].__class__ = _Callable
