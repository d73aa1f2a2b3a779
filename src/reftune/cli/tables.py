"""Tables in the terminal, without lines around them.

Must not know: what is in them.
"""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .output import say

__all__ = ["plain", "show", "table_of"]


def table_of(title: str, *columns: str, left: int = 1) -> Table:
    """The first `left` columns are of texts, the others of numbers."""
    table = Table(title=title, box=None, pad_edge=False)
    for i, name in enumerate(columns):
        table.add_column(name, justify="left" if i < left else "right")
    return table


def show(console: Console, table: Table) -> None:
    """Its title on a line of its own, however narrow the table is."""
    title, table.title = table.title, None
    say(console, f"\n{title}", style="bold")
    console.print(table)


def plain(text: str) -> Text:
    """What a user or a model wrote: no markup in it."""
    return Text(text)
