"""How the commands print: one console for results on standard output, one small table style."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

console = Console(highlight=False)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table; the first column is text, the others numbers (right-aligned). Cells are never read as markup."""
    table = Table(title=Text(title), title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for i, name in enumerate(columns):
        first = i == 0  # a long name gives way, a number never does
        table.add_column(
            name,
            justify="left" if first else "right",
            no_wrap=not first,
            overflow="fold",
            min_width=9 if first else None,
        )
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    console.print(table)
