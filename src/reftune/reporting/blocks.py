"""What a page is made of, before it is HTML or Markdown.  All texts are plain: writers escape them.

Must not know: results, HTML, Markdown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

__all__ = [
    "Block",
    "Cell",
    "Code",
    "Column",
    "Facts",
    "Fold",
    "Items",
    "Picture",
    "Pictures",
    "Section",
    "Table",
    "Text",
    "Token",
    "Tokens",
    "one_line",
]


def one_line(text: str) -> str:
    """With single blanks, and nothing that cannot be printed."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Items:
    """A list."""

    items: Sequence[str]


@dataclass(frozen=True)
class Facts:
    """Names and what they are."""

    facts: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Code:
    """What is typed or was printed."""

    code: str


@dataclass(frozen=True)
class Column:
    """A column's head; numbers stand to the right."""

    title: str
    below: str = ""
    number: bool = True


@dataclass(frozen=True)
class Cell:
    """A value, and in small what belongs to it."""

    text: str
    below: str = ""
    strong: bool = False


@dataclass(frozen=True)
class Table:
    """`notes` are footnotes.  Rows in `quiet` are there to compare with."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    caption: str
    notes: Sequence[str] = ()
    quiet: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Picture:
    """`svg` stands on its own; `name` is that of its file."""

    name: str
    title: str
    svg: str
    caption: str = ""


@dataclass(frozen=True)
class Pictures:
    """Pictures side by side."""

    pictures: Sequence[Picture]
    caption: str = ""


@dataclass(frozen=True)
class Token:
    """A piece of a text, `share` of the colour that it is marked with, and what is told of it when it is pointed at."""

    text: str
    share: float = 0.0
    note: str = ""


@dataclass(frozen=True)
class Tokens:
    """A text in pieces."""

    tokens: Sequence[Token]


@dataclass(frozen=True)
class Fold:
    """What is shown when asked for."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Section:
    """A heading and what is under it."""

    title: str
    blocks: Sequence[Block] = field(default_factory=list)


Block: TypeAlias = "Text | Items | Facts | Code | Table | Tokens | Pictures | Fold"
