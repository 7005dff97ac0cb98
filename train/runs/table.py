"""Tables: drawn on a terminal, plain aligned columns elsewhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import click
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

ABSENT = "-"
"""Stands where there is no value."""


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        header: Stands above it.
        number: Whether it holds numbers, which end where the column ends.
        wrap: Whether its text may go on in a second line, between words, where a terminal is too narrow.
    """

    header: str
    number: bool = False
    wrap: bool = False


def show_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """Write a table to the standard output, in the way that fits it.

    Args:
        columns: From the left.
        rows: One text a column each, shown as `printable` makes it.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    console = Console()
    lines = _lines(columns, rows)
    if not console.is_terminal:
        for line in lines:
            click.echo(line)
        return
    spare = int(console.width > max(map(cell_len, lines)))
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, spare, 0, 0))
    for column in columns:
        justify: Literal["left", "right"] = "right" if column.number else "left"
        table.add_column(column.header, justify=justify, no_wrap=not column.wrap, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)


def _lines(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> list[str]:
    table = [[column.header for column in columns], *rows]
    widths = [max(map(cell_len, cells)) for cells in zip(*table, strict=True)]
    lines = []
    for row in table:
        cells = []
        for column, width, cell in zip(columns, widths, row, strict=True):
            padding = " " * (width - cell_len(cell))
            cells.append(padding + cell if column.number else cell + padding)
        lines.append("  ".join(cells).rstrip())
    return lines


def printable(text: str) -> str:
    """Return text with all that cannot be printed, like a line's end in a name, as escapes."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
