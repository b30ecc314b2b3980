"""All charts of a page under their names: the page draws them, `save_figures` writes them as SVG and PNG files."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import altair as alt

from inheritune.report.charts.base import with_rows

Context = dict[str, Any]
"""What a template shows, by name."""

_LONGEST = 40
_DIGITS = 6
"""Significant digits of the numbers in the page; hover values show fewer."""


@dataclass
class Figures:
    """The charts of one page.

    Attributes:
        charts: by the id of their place in the page.
        files: the name of each chart's file, without its ending, different for each.
    """

    charts: dict[str, alt.TopLevelMixin] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    def add(self, identifier: str, chart: alt.TopLevelMixin, file: str) -> str:
        """Keep a chart under its id in the page, and return the id.

        Args:
            identifier: the id of the element it is drawn in.
            chart: the chart.
            file: a readable name for its file; what cannot stand in one is replaced.
        """
        name = slug(file)
        taken, number = set(self.files.values()), 2
        while name in taken:
            name, number = f"{slug(file)}-{number}", number + 1
        self.charts[identifier] = chart
        self.files[identifier] = name
        return identifier


def slug(text: str) -> str:
    """Return a text as a part of a file name: lower-case ASCII letters, digits, full stops and hyphens."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9.]+", "-", plain).strip("-.") or "figure"


def short(label: str) -> str:
    """Return a model's label as a part of a file name, cut to forty characters."""
    return slug(label)[:_LONGEST].strip("-.")


def page_data(figures: Figures) -> dict[str, Any]:
    """Return the specifications for the page: `charts` by id, and the rows they draw as `tables`, each of them once.

    A table has its field names once and its numbers with six significant digits: a third of the size of rows of
    named values. The page's script puts the rows back. `$schema` is left out, so that the page names no address.
    """
    tables: list[dict[str, Any]] = []
    known: dict[str, int] = {}

    def place(rows: list[dict[str, Any]]) -> dict[str, Any]:
        table = _table(rows)
        key = repr(table)
        if key not in known:
            known[key] = len(tables)
            tables.append(table)
        return {"table": known[key]}

    charts = {name: with_rows(chart.to_dict(), place) for name, chart in figures.charts.items()}
    for spec in charts.values():
        spec.pop("$schema", None)
    return {"charts": charts, "tables": tables}


def _table(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    fields = list(dict.fromkeys(key for row in rows for key in row))
    return {"fields": fields, "rows": [[_brief(row.get(name)) for name in fields] for row in rows]}


def _brief(value: Any) -> Any:
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value
