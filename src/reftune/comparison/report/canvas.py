"""What all pictures share: their size, how a method looks, axes, labels beside points.

Must not know: what a picture shows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

from ...reporting.blocks import one_line
from ...reporting.svg import FONT, MUTED, SERIES, measured, to_svg
from .labels import Box, leader
from .summary import MethodRow

__all__ = [
    "MARK",
    "MUTED_LINE",
    "SHAPES",
    "Label",
    "Style",
    "draw",
    "labels_of",
    "log_axis",
    "name_picture",
    "styles",
    "tick",
    "write",
]

# Points of 1/72 inch.  As wide as a phone, so that letters keep their size there.
WIDTH, HEIGHT, TALLEST = 340.0, 270.0, 480.0
LEFT, RIGHT, BOTTOM, TOP = 50.0, 6.0, 36.0, 24.0
MARK = 6.0
# Letters of a line of a label, and of a label.
LINE, LONGEST_LABEL = 22, 42
LONGEST_HEADING = 48
# Beyond it a label needs a line to its point.
NEAR = 1.6 * MARK
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)))
FAMILIES = (("o", ("reft", "prefill", "red")), ("s", ("lora", "dora")))
OTHER = "D"
# How lines without a method are drawn.
MUTED_LINE: dict[str, Any] = {"color": MUTED, "linewidth": 0.9, "linestyle": (0, (3, 3)), "zorder": 1}
SHAPES = "Circles are ReFT methods, squares LoRA and its kin, diamonds others."


@dataclass(frozen=True)
class Style:
    """How a method looks, in all pictures alike."""

    colour: str
    shape: str
    dash: Any


def styles(rows: Sequence[MethodRow]) -> dict[str, Style]:
    """By label."""
    found: dict[str, Style] = {}
    for row in rows:
        if row.trains and row.label not in found:
            place = len(found)
            colour = SERIES[place % len(SERIES)][0]
            found[row.label] = Style(colour, _shape(row.method), DASHES[place // len(SERIES) % len(DASHES)])
    return found


def _shape(method: str) -> str:
    return next((shape for shape, parts in FAMILIES if any(part in method.lower() for part in parts)), OTHER)


@dataclass(frozen=True)
class Label:
    """A text and the point that it belongs to, in points of the picture."""

    text: str
    at: tuple[float, float]
    size: tuple[float, float]
    colour: str
    linked: bool = True


def draw(paint: Callable[[Figure, Any, Box], bool], *, name: str, title: str) -> str:
    """A picture.  `paint(figure, axes, area)` says whether its labels had room; if not, it is painted again, higher."""
    with measured():
        height = HEIGHT
        while True:
            figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
            FigureCanvasAgg(figure)
            area = Box(LEFT, BOTTOM, WIDTH - RIGHT, height - TOP)
            sides = (LEFT / WIDTH, BOTTOM / height, (area.right - LEFT) / WIDTH, (area.top - BOTTOM) / height)
            axes: Any = figure.add_axes(sides)
            if paint(figure, axes, area) or height >= TALLEST:
                return to_svg(figure, name=name, title=title)
            height *= 1.2


def name_picture(figure: Figure, heading: str, y_label: str) -> None:
    """What it is of, over it, and what goes up, beside it: a picture is looked at without its page too."""
    width, height = (72 * side for side in figure.get_size_inches())
    heading = one_line(heading)
    heading = heading if len(heading) <= LONGEST_HEADING else f"{heading[: LONGEST_HEADING - 1]}…"
    figure.text(LEFT / width, 1 - 6 / height, heading, fontsize=FONT, va="top", ha="left", fontweight="bold")
    middle = (BOTTOM + height - TOP) / 2 / height
    figure.text(4 / width, middle, y_label, fontsize=FONT - 1, rotation=90, va="center", ha="left")


def labels_of(
    figure: Figure, texts: Sequence[tuple[str, tuple[float, float], str]], *, linked: bool = True
) -> list[Label]:
    """Labels of (text, point, colour), measured."""
    found = []
    for text, at, colour in texts:
        short = _short(text)
        found.append(Label(short, at, _size(figure, short), colour, linked))
    return found


def write(figure: Figure, labels: Sequence[Label], boxes: Sequence[Box]) -> None:
    """The labels, and lines to those that are far from their points."""
    width, height = (72 * side for side in figure.get_size_inches())
    for label, box in zip(labels, boxes, strict=True):
        (x0, y0), (x1, y1) = leader(label.at, box)
        if label.linked and (x1 - x0) ** 2 + (y1 - y0) ** 2 > NEAR**2:
            xs, ys = (x0 / width, x1 / width), (y0 / height, y1 / height)
            figure.add_artist(Line2D(xs, ys, color=label.colour, linewidth=0.6, alpha=0.7, zorder=1.5))
        figure.text(
            (box.left + 1) / width,
            (box.bottom + 1) / height,
            label.text,
            fontsize=FONT - 1,
            color=label.colour,
            va="bottom",
            ha="left",
            linespacing=1.0,
        )


def _size(figure: Figure, text: str) -> tuple[float, float]:
    """Of a label, in DejaVu: wider than what browsers take, so that there is always room."""
    canvas: Any = figure.canvas
    artist = figure.text(0, 0, text, fontsize=FONT - 1, linespacing=1.0)
    extent = artist.get_window_extent(canvas.get_renderer())
    artist.remove()
    return float(extent.width) + 2, float(extent.height) + 2


def _short(text: str) -> str:
    """On two lines at most, each short enough to find a place."""
    text = one_line(text)
    if len(text) > LONGEST_LABEL:
        text = text[: LONGEST_LABEL - 1].rstrip() + "…"
    if len(text) <= LINE:
        return text
    # where the longer of two lines is shortest
    cuts = [i for i, letter in enumerate(text) if letter == " "] or [len(text) // 2]
    cut = min(cuts, key=lambda i: max(i, len(text) - i))
    return f"{text[:cut].rstrip()}\n{text[cut:].lstrip()}"


def log_axis(axis: Any, decades: float) -> None:
    """Ticks of a logarithmic axis of so many decades: powers of ten, or more where these are few."""
    axis.set_major_locator(LogLocator(subs=(1.0,) if decades > 1.6 else (1.0, 2.0, 5.0)))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def tick(value: float) -> str:
    return f"{round(value, 6):,g}".replace("-", "−")
