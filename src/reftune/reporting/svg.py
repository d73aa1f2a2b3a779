"""Figures as SVG that takes its colours from the page, light or dark, and loads nothing.

Must not know: what is drawn.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

__all__ = ["FONT", "GRID", "INK", "MUTED", "PAPER", "SERIES", "STYLE", "THEME", "measured", "to_svg"]

SVG = "http://www.w3.org/2000/svg"
INK, MUTED, GRID, PAPER = "#1c2024", "#5f6873", "#e1e5ea", "#fefefe"
# (light, dark): told apart on either paper
SERIES: tuple[tuple[str, str], ...] = (
    ("#1f63c8", "#6ea6ff"),
    ("#cc5a08", "#ff9c52"),
    ("#16834a", "#52cc88"),
    ("#7c42c2", "#bd94ff"),
    ("#c4283c", "#ff7d88"),
    ("#0a8494", "#49c9d8"),
    ("#86592d", "#d0a272"),
    ("#bd3592", "#fb89d2"),
    ("#6f7300", "#cacb50"),
    ("#4f5b69", "#a8b3c0"),
)
_PAPERS = {"ink": (INK, "#e8eaed"), "muted": (MUTED, "#9aa4b0"), "grid": (GRID, "#30363d"), "paper": (PAPER, "#14171b")}
_NAMES = {**_PAPERS, **{f"s{i}": pair for i, pair in enumerate(SERIES)}}

FONT = 9
STYLE: dict[Any, Any] = {
    # text stays text: small, to be searched, in the reader's colours
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": FONT,
    # labels are people's: a $ is a $
    "text.parse_math": False,
    "axes.unicode_minus": True,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": FONT - 1,
    "ytick.labelsize": FONT - 1,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "path.simplify": True,
}


def _variables(which: int) -> str:
    return "".join(f"--{name}:{pair[which]};" for name, pair in _NAMES.items())


THEME = f":root{{{_variables(0)}}}@media (prefers-color-scheme:dark){{:root{{{_variables(1)}}}}}"
_TEXTS = (
    "text{font-family:system-ui,sans-serif;paint-order:stroke;stroke:var(--paper);stroke-width:2.5px;"
    "stroke-linejoin:round}"
)


@contextmanager
def measured() -> Iterator[None]:
    """Inside it figures are made, measured and written in `STYLE`; what a font lacks is the browser's to find."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*missing from font.*")
        yield


def to_svg(figure: Figure, *, name: str, title: str) -> str:
    """A file of its own.  `name` makes its ids its own, so that several may stand in one page."""
    FigureCanvasSVG(figure)
    target = io.BytesIO()
    # of which the ids are made that are used
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    # as a tree: labels may hold what looks like a colour or an id
    root = ElementTree.fromstring(target.getvalue())
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {key.rpartition("}")[2]: _themed(value) for key, value in element.attrib.items()}
        element.tail = "\n"
        if element.tag == "g":
            element.attrib.pop("id", None)
        if not (element.text or "").strip():
            element.text = None
    for metadata in root.findall("metadata"):
        root.remove(metadata)
    width, height = (72 * size for size in figure.get_size_inches())
    label = "".join(letter for letter in title if letter.isprintable())
    root.attrib = {"xmlns": SVG, "viewBox": f"0 0 {width:g} {height:g}", "role": "img", "aria-label": label}
    style = ElementTree.Element("style")
    style.text = THEME + _TEXTS
    root.insert(0, style)
    return ElementTree.tostring(root, encoding="unicode")


def _themed(value: str) -> str:
    """An attribute in colours and fonts of the page."""
    for key, (light, _) in _NAMES.items():
        value = value.replace(light, f"var(--{key},{light})")
    return re.sub(r"font:\s*([\d.]+)px[^;]*", r"font-size:\1px", value)
