"""Scores against what they cost: a point for each method, with its interval and its label.

Must not know: where the numbers come from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ...reporting.numbers import points
from ...reporting.svg import FONT, MUTED, PAPER
from .canvas import MARK, MUTED_LINE, Style, draw, labels_of, log_axis, name_picture, tick, write
from .labels import Box, apart, clashes, place
from .summary import Estimate

__all__ = ["Spot", "levels_in", "scatter"]

# Decades between the ends of an axis from which it is logarithmic in any case.
LOG_FROM = 0.7
# A line for a score without training is drawn if that makes the picture no higher than by this part.
REACH = 0.3
# Points side by side are so far apart, so that each interval is seen.
BESIDE = 5.0


@dataclass(frozen=True)
class Spot:
    """A method in a picture of scores."""

    label: str
    x: float
    estimate: Estimate
    style: Style


def levels_in(spots: Sequence[Spot], levels: Mapping[str, float]) -> dict[str, float]:
    """Those of `levels` (scores without training, drawn as lines) that are not far from the points."""
    low, high = _range(spots)
    reach = REACH * ((high - low) or 0.1)
    return {name: value for name, value in levels.items() if low - reach <= value <= high + reach}


def scatter(
    spots: Sequence[Spot],
    *,
    name: str,
    title: str,
    heading: str,
    x_label: str,
    y_label: str,
    levels: Mapping[str, float],
    logarithmic: bool = False,
) -> str:
    """The axis of x is logarithmic if that is asked for, or if the values are far apart; `heading` stands over it."""

    def paint(figure: Figure, axes: Any, area: Box) -> bool:
        _x_axis(axes, [spot.x for spot in spots], logarithmic=logarithmic)
        axes.set_xlabel(x_label, fontsize=FONT, labelpad=3)
        name_picture(figure, heading, y_label)
        _y_axis(axes, spots, levels)
        return _paint(figure, axes, area, spots, levels)

    return draw(paint, name=name, title=title)


def _x_axis(axes: Any, values: Sequence[float], *, logarithmic: bool) -> None:
    low, high = min(values), max(values)
    decades = math.log10(high / low)
    # labels need room beside the outermost points
    if logarithmic or decades >= LOG_FROM:
        axes.set_xscale("log")
        axes.set_xlim(low / 10 ** max(0.25 * decades, 0.4), high * 10 ** max(0.12 * decades, 0.25))
        log_axis(axes.xaxis, decades)
    else:
        room = 0.25 * (high - low) or 0.5 * high
        axes.set_xlim(max(0.0, low - room), high + room)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))


def _range(spots: Sequence[Spot]) -> tuple[float, float]:
    estimates = [spot.estimate for spot in spots]
    lows = [one.mean if one.low is None else one.low for one in estimates]
    highs = [one.mean if one.high is None else one.high for one in estimates]
    return min(lows), max(highs)


def _y_axis(axes: Any, spots: Sequence[Spot], levels: Mapping[str, float]) -> None:
    low, high = _range(spots)
    low, high = min([low, *levels.values()]), max([high, *levels.values()])
    room = 0.12 * ((high - low) or 0.1)
    axes.set_ylim(low - room, high + room)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(100 * value)))


def _paint(figure: Figure, axes: Any, area: Box, spots: Sequence[Spot], levels: Mapping[str, float]) -> bool:
    """Whether every label found a place of its own."""
    marks: list[Box] = []
    lines: list[Box] = []
    names: list[tuple[str, tuple[float, float], str]] = []
    for level, value in levels.items():
        axes.axhline(value, **MUTED_LINE)
        y = float(axes.transData.transform((1.0, value))[1])
        lines.append(Box(area.left, y - 0.5, area.right, y + 0.5))
        names.append((f"{level} {points(value)}", (area.left + 2, y), MUTED))
    fixed = labels_of(figure, names, linked=False)
    for spot, x in zip(spots, _beside(axes, area, spots), strict=True):
        mark, bar = _mark(axes, spot, x)
        marks.append(mark)
        lines += bar
    middles = [((mark.left + mark.right) / 2, (mark.bottom + mark.top) / 2) for mark in marks]
    own = labels_of(figure, [(s.label, at, s.style.colour) for s, at in zip(spots, middles, strict=True)])
    labels = [*fixed, *own]
    boxes = place([label.at for label in labels], [label.size for label in labels], area, marks=marks, lines=lines)
    write(figure, labels, boxes)
    return clashes(boxes, marks) == 0


def _beside(axes: Any, area: Box, spots: Sequence[Spot]) -> list[float]:
    """Where points stand: over their x, or beside it where others stand."""
    wanted = [float(axes.transData.transform((spot.x, 0.0))[0]) for spot in spots]
    order = sorted(range(len(spots)), key=lambda i: (wanted[i], spots[i].estimate.mean))
    moved = apart([wanted[i] for i in order], [BESIDE] * len(order), area.left, area.right)
    at = dict(zip(order, moved, strict=True))
    return [at[i] for i in range(len(spots))]


def _mark(axes: Any, spot: Spot, place_x: float) -> tuple[Box, list[Box]]:
    """Draw a point and its interval; the boxes that they fill."""
    estimate, style = spot.estimate, spot.style
    x = float(axes.transData.inverted().transform((place_x, 0.0))[0])
    bar: list[Box] = []
    if estimate.low is not None and estimate.high is not None:
        axes.vlines(x, estimate.low, estimate.high, color=style.colour, linewidth=1.1, alpha=0.55, zorder=2)
        (_, low), (_, high) = axes.transData.transform([(x, estimate.low), (x, estimate.high)])
        bar.append(Box(place_x - 0.8, float(low), place_x + 0.8, float(high)))
    look = {"color": style.colour, "markersize": MARK, "markeredgecolor": PAPER, "markeredgewidth": 0.8, "zorder": 3}
    axes.plot([x], [estimate.mean], style.shape, **look)
    y = float(axes.transData.transform((x, estimate.mean))[1])
    return Box(place_x - MARK / 2, y - MARK / 2, place_x + MARK / 2, y + MARK / 2), bar
