"""Figures as people read them, and the tables that they stand in."""

from __future__ import annotations

import math
from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

Row = tuple[str, str]


def figure_table(title: str, *columns: str) -> Table:
    """A table whose first column is text and whose others are figures."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    table.add_column(title, overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def two_columns(rows: Iterable[Row]) -> Table:
    """Two columns; a long text in the second goes on below itself."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    for first, second in rows:
        grid.add_row(Text(first), Text(second, overflow="fold"))
    return grid


def changed_by(old: int, new: int) -> str:
    """A change in percent of the old number: `-82.7 %`."""
    return f"{100 * (new - old) / old:+.1f} %"


def milliseconds(value: float) -> str:
    """Three digits, and their zeros."""
    decimals = max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0
    return f"{value:.{decimals}f} ms"


def si(number: int, unit: str = "") -> str:
    """A number with four digits and a prefix for its thousands: `1.513 G`, `972 B`."""
    for prefix, power in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= power:
            return f"{number / power:.4g} {prefix}{unit}"
    return f"{number} {unit}".rstrip()


def counted(number: int, noun: str) -> str:
    """A number and its noun: `1 group`, `2 groups`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
