"""A report as one HTML file: its style and its pictures are in it, and its policy lets it load nothing.

Must not know: results.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import singledispatch
from html import escape
from importlib.resources import files

from .blocks import Block, Cell, Code, Column, Facts, Fold, Items, Picture, Pictures, Section, Table, Text

__all__ = ["to_html"]

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def to_html(title: str, sections: Sequence[Section], *, theme: str) -> str:
    """The page; `theme` are the colours as CSS variables, light and dark."""
    style = files("reftune.reporting").joinpath("page.css").read_text(encoding="utf-8")
    links = "".join(f'<a href="#{_anchor(i)}">{text(section.title)}</a>' for i, section in enumerate(sections))
    body = "\n".join(
        f'<section id="{_anchor(i)}"><h2>{text(section.title)}</h2>\n{_all(section.blocks)}\n</section>'
        for i, section in enumerate(sections)
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{text(title)}</title>\n<style>\n{theme}\n{style}</style>\n</head>\n<body>\n<main>\n"
        f'<h1>{text(title)}</h1>\n<nav aria-label="Sections">{links}</nav>\n{body}\n</main>\n</body>\n</html>\n'
    )


def text(value: str) -> str:
    """Escaped; without the control characters that HTML has no way to hold."""
    return escape("".join(sign for sign in value if sign.isprintable() or sign in "\n\t"))


def _anchor(index: int) -> str:
    return f"part-{index + 1}"


def _all(blocks: Sequence[Block]) -> str:
    return "\n".join(_html(block) for block in blocks)


@singledispatch
def _html(block: Block) -> str:
    raise TypeError(f"no HTML for {type(block).__name__}")


@_html.register
def _(block: Text) -> str:
    return f"<p>{text(block.text)}</p>"


@_html.register
def _(block: Items) -> str:
    return f"<ul>{''.join(f'<li>{text(item)}</li>' for item in block.items)}</ul>" if block.items else ""


@_html.register
def _(block: Facts) -> str:
    return f"<dl>{''.join(f'<div><dt>{text(name)}</dt><dd>{text(fact)}</dd></div>' for name, fact in block.facts)}</dl>"


@_html.register
def _(block: Code) -> str:
    return f'<pre tabindex="0">{text(block.code)}</pre>'


@_html.register
def _(block: Fold) -> str:
    return f"<details><summary>{text(block.title)}</summary>\n{_all(block.blocks)}\n</details>"


@_html.register
def _(block: Pictures) -> str:
    caption = f"<p>{text(block.caption)}</p>\n" if block.caption else ""
    return f'{caption}<div class="pictures">\n{"".join(map(_figure, block.pictures))}</div>'


def _figure(picture: Picture) -> str:
    # the page has the colours and the font already
    svg = re.sub(r"<style>.*?</style>", "", picture.svg, count=1, flags=re.DOTALL)
    svg = svg.replace(' xmlns="http://www.w3.org/2000/svg"', "", 1)
    below = f"<small>{text(picture.caption)}</small>" if picture.caption else ""
    return f"<figure><figcaption>{text(picture.title)}{below}</figcaption>\n{svg}</figure>\n"


@_html.register
def _(block: Table) -> str:
    heads = "".join(_head(column) for column in block.columns)
    lines = "\n".join(
        f"<tr{' class=quiet' if i in block.quiet else ''}>{_line(block.columns, row)}</tr>"
        for i, row in enumerate(block.rows)
    )
    notes = "".join(f"<li>{text(note)}</li>" for note in block.notes)
    below = f'\n<ul class="notes">{notes}</ul>' if notes else ""
    # scrolls on its own, also by keys
    return (
        f'<div class="table" tabindex="0" role="region" aria-label="{text(block.caption)}"><table>'
        f"<caption>{text(block.caption)}</caption>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{lines}\n</tbody></table>"
        f"</div>{below}"
    )


def _head(column: Column) -> str:
    below = f"<small>{text(column.below)}</small>" if column.below else ""
    return f'<th scope="col"{_side(column)}>{text(column.title)}{below}</th>'


def _line(columns: Sequence[Column], row: Sequence[Cell]) -> str:
    found = []
    for i, (column, cell) in enumerate(zip(columns, row, strict=True)):
        value = f"<strong>{text(cell.text)}</strong>" if cell.strong else text(cell.text)
        below = f"<small>{text(cell.below)}</small>" if cell.below else ""
        found.append(
            f"<td{_side(column)}>{value}{below}</td>" if i else f'<th scope="row"{_side(column)}>{value}{below}</th>'
        )
    return "".join(found)


def _side(column: Column) -> str:
    return " class=n" if column.number else ""
