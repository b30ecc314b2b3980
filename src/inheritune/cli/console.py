"""How the commands print their results on standard output: one small table style; lines go through `typer.echo`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table; the first column is text, the others numbers (right-aligned). Cells are never read as markup."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(title) if title else None, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0)
    )
    first, *others = columns
    table.add_column(first, overflow="fold", min_width=9)  # a long name gives way, a number never does
    for name in others:
        table.add_column(name, justify="right", no_wrap=True, overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    Console(highlight=False).print(table)
