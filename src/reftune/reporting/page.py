"""A page of blocks as one HTML file and as Markdown (GitHub's): `templates/` has what they look like.

The HTML has its style and its pictures in it, and its policy lets it load nothing; the Markdown has its pictures as
files beside it.

Must not know: results.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from html import escape

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from .blocks import Section, one_line

__all__ = ["to_html", "to_markdown"]


def to_html(title: str, sections: Sequence[Section], *, theme: str) -> str:
    """The page; `theme` are the colours as CSS variables, light and dark."""
    return _environment(_printable).get_template("page.html").render(title=title, sections=sections, theme=theme)


def to_markdown(title: str, sections: Sequence[Section], *, pictures: str) -> str:
    """The text; `pictures` is the folder of the pictures, as seen from it."""
    return _environment(_markdown).get_template("page.md").render(title=title, sections=sections, folder=pictures)


def _environment(finish: Callable[[str], str]) -> Environment:
    """`finish` gets every text of a block that a template shows."""
    found = Environment(
        loader=PackageLoader("reftune.reporting"),
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else finish(str(value)),
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters |= {"inline": _inline, "fenced": _fenced, "html_line": _html_line, "visible": _visible}
    found.globals["kind"] = lambda block: type(block).__name__
    return found


def _printable(text: str) -> str:
    """Without the control characters that HTML has no way to hold."""
    return "".join(sign for sign in text if sign.isprintable() or sign in "\n\t")


def _visible(text: str) -> str:
    """With a sign for each line break, which is a part of a token that can be seen."""
    return text.replace("\n", "⏎\n")


def _html_line(text: str) -> Markup:
    return Markup(escape(one_line(text), quote=False))


def _markdown(text: str) -> Markup:
    """On one line, with nothing in it that Markdown or HTML would take for its own."""
    line = re.sub(r"([\\`*_\[\]|~])", r"\\\1", _html_line(text))
    # what begins a heading, a list or a rule
    return Markup(re.sub(r"^([#+=-]|\d+[.)](?=\s|$))", lambda found: f"{found[0][:-1]}\\{found[0][-1]}", line))


def _inline(svg: str) -> Markup:
    """A picture in a page that has the colours and the font already."""
    svg = re.sub(r"<style>.*?</style>", "", svg, count=1, flags=re.DOTALL)
    return Markup(svg.replace(' xmlns="http://www.w3.org/2000/svg"', "", 1))


def _fenced(code: str) -> Markup:
    """Between more backticks than are inside in a row."""
    code = _printable(code)
    fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", code)), default=0))
    return Markup(f"{fence}text\n{code}\n{fence}")
