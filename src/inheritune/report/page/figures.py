"""All charts of a page under their names: the page draws them, `save_figures` writes them as SVG and PNG files."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field
from typing import Any

from inheritune.report.charts.base import Picture, with_rows
from inheritune.report.rows.series import Row

Context = dict[str, Any]
"""What a template shows, by name."""

_LONGEST = 60
_DIGITS = 6
"""Significant digits of the numbers in the page; hover values show fewer."""


@dataclass
class Figures:
    """The charts of one page.

    Attributes:
        palette: a colour for each model's label, the same in every chart.
        charts: by name, which is the id of the chart's place in the page and the name of its files without the ending.
    """

    palette: dict[str, str] = field(default_factory=dict)
    charts: dict[str, Picture] = field(default_factory=dict)

    def add(self, chart: Picture, *parts: str) -> str:
        """Keep a chart under a name of its own, made of these parts (what it shows, of which model), and return it."""
        whole = "-".join(slug(part)[:_LONGEST].strip("-.") for part in parts)
        name, number = whole, 2
        while name in self.charts:
            name, number = f"{whole}-{number}", number + 1
        self.charts[name] = chart
        return name


def slug(text: str) -> str:
    """Return a text as a part of a file name: lower-case ASCII letters, digits, full stops and hyphens."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9.]+", "-", plain).strip("-.") or "figure"


def page_data(figures: Figures) -> dict[str, Any]:
    """Return the specifications for the page: `charts` by id, and the rows they draw as `tables`, each of them once.

    A table has its field names once and its numbers with six significant digits: a third of the size of rows of
    named values. The page's script puts the rows back. `$schema` is left out, so that the page names no address.
    """
    tables: list[dict[str, Any]] = []

    def place(rows: list[Row]) -> dict[str, Any]:
        fields = list(dict.fromkeys(key for row in rows for key in row))
        table = {"fields": fields, "rows": [[_brief(row.get(name)) for name in fields] for row in rows]}
        if table not in tables:
            tables.append(table)
        return {"table": tables.index(table)}

    charts = {name: with_rows(chart.to_dict(), place) for name, chart in figures.charts.items()}
    for spec in charts.values():
        spec.pop("$schema", None)
    return {"charts": charts, "tables": tables}


def _brief(value: Any) -> Any:
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value
