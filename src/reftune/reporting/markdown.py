"""A report as Markdown (GitHub's), its pictures as files beside it.

Must not know: results.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import singledispatch
from html import escape

from .blocks import Block, Cell, Code, Column, Facts, Fold, Items, Pictures, Section, Table, Text

__all__ = ["to_markdown"]


def to_markdown(title: str, sections: Sequence[Section], *, pictures: str) -> str:
    """The text; `pictures` is the folder of the pictures, as seen from it."""
    parts = [f"# {text(title)}"]
    for section in sections:
        parts += [f"## {text(section.title)}", *(_markdown(block, pictures) for block in section.blocks)]
    return "\n\n".join(part for part in parts if part) + "\n"


def text(value: str) -> str:
    """On one line, with nothing in it that Markdown or HTML would take for its own."""
    line = re.sub(r"([\\`*_\[\]|~])", r"\\\1", escape(_line_of(value), quote=False))
    # what begins a heading, a list or a rule
    return re.sub(r"^([#+=-]|\d+[.)](?=\s|$))", lambda found: f"{found[0][:-1]}\\{found[0][-1]}", line)


def _line_of(value: str) -> str:
    return " ".join("".join(sign if sign.isprintable() else " " for sign in value).split())


@singledispatch
def _markdown(block: Block, pictures: str) -> str:
    raise TypeError(f"no Markdown for {type(block).__name__}")


@_markdown.register
def _(block: Text, pictures: str) -> str:
    return text(block.text)


@_markdown.register
def _(block: Items, pictures: str) -> str:
    return "\n".join(f"- {text(item)}" for item in block.items)


@_markdown.register
def _(block: Facts, pictures: str) -> str:
    return "\n".join(f"- {text(name)}: {text(fact)}" for name, fact in block.facts)


@_markdown.register
def _(block: Code, pictures: str) -> str:
    # longer than any row of backticks inside
    code = "".join(sign for sign in block.code if sign.isprintable() or sign in "\n\t")
    fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", code)), default=0))
    return f"{fence}text\n{code}\n{fence}"


@_markdown.register
def _(block: Fold, pictures: str) -> str:
    inside = "\n\n".join(_markdown(part, pictures) for part in block.blocks)
    # a line of HTML, in which Markdown has no meaning
    return f"<details><summary>{escape(_line_of(block.title), quote=False)}</summary>\n\n{inside}\n\n</details>"


@_markdown.register
def _(block: Pictures, pictures: str) -> str:
    parts = [text(block.caption)] if block.caption else []
    for picture in block.pictures:
        below = f" {text(picture.caption)}" if picture.caption else ""
        parts.append(f"**{text(picture.title)}**{below}\n\n![{text(picture.title)}]({pictures}/{picture.name}.svg)")
    return "\n\n".join(parts)


@_markdown.register
def _(block: Table, pictures: str) -> str:
    lines = [f"**{text(block.caption)}**", ""]
    lines.append(_line([_head(column) for column in block.columns]))
    lines.append(_line(["---:" if column.number else "---" for column in block.columns]))
    lines += [_line([_cell(cell) for cell in row]) for row in block.rows]
    notes = "\n".join(f"- {text(note)}" for note in block.notes)
    return "\n".join(lines) + (f"\n\n{notes}" if notes else "")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _head(column: Column) -> str:
    return text(column.title) + (f"<br>{text(column.below)}" if column.below else "")


def _cell(cell: Cell) -> str:
    value = f"**{text(cell.text)}**" if cell.strong else text(cell.text)
    return value + (f"<br>{text(cell.below)}" if cell.below else "")
