"""Learning curves: loss by step or by time, a line for each method.

Must not know: where the numbers come from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from ...reporting.numbers import Unit, time_unit
from ...reporting.svg import FONT, MUTED
from .canvas import Label, Style, draw, labels_of, log_axis, name_picture, tick, write
from .labels import Box, clashes, place, stack

__all__ = ["Curve", "curves", "mean_curve"]

Curve: TypeAlias = Sequence[tuple[float, float, float]]
"""(step, seconds, loss)"""
Line: TypeAlias = tuple[np.ndarray, np.ndarray]

MOST_POINTS = 120
# Between the longest line and the labels to the right of it; and the least part of the picture that is lines.
GAP, LEAST = 14.0, 0.5
STEPS = [1, 2, 2.5, 5, 10]


def mean_curve(runs: Sequence[Curve], *, by_time: bool) -> Line:
    """(x, mean loss over the runs), as far as the shortest goes; each value averaged with its neighbours."""
    runs = [run for run in runs if run]
    column = int(by_time)
    steps = np.array([point[0] for point in min(runs, key=lambda run: run[-1][0])])
    losses = np.mean([np.interp(steps, [p[0] for p in run], [p[2] for p in run]) for run in runs], axis=0)
    xs = np.mean([np.interp(steps, [p[0] for p in run], [p[column] for p in run]) for run in runs], axis=0)
    reach = max(1, len(losses) // 20)
    # near the ends there are fewer neighbours, so that no value is made up
    smooth = np.array([losses[max(0, i - reach) : i + reach + 1].mean() for i in range(len(losses))])
    keep = np.unique(np.linspace(0, len(xs) - 1, min(len(xs), MOST_POINTS)).round().astype(int))
    return xs[keep], smooth[keep]


def curves(
    runs: Mapping[str, Sequence[Curve]],
    looks: Mapping[str, Style],
    *,
    name: str,
    title: str,
    heading: str,
    by_time: bool,
) -> str:
    """`runs`: the curves of all seeds, by label; `heading` stands over them."""
    lines = {label: mean_curve(found, by_time=by_time) for label, found in runs.items() if any(found)}
    unit = time_unit([float(xs[-1]) for xs, _ in lines.values()]) if by_time else Unit("", 1)
    lines = {label: (xs * unit.factor, losses) for label, (xs, losses) in lines.items()}

    def paint(figure: Figure, axes: Any, area: Box) -> bool:
        last = max(float(xs[-1]) for xs, _ in lines.values())
        widest = max(label.size[0] for label in labels_of(figure, [(name, (0.0, 0.0), MUTED) for name in lines]))
        width = area.right - area.left
        axes.set_xlim(0, last / max(LEAST, 1 - (widest + GAP) / width) if last > 0 else 1)
        ticks = MaxNLocator(4, steps=STEPS).tick_values(0, last)
        axes.xaxis.set_major_locator(FixedLocator([t for t in ticks if 0 <= t <= 1.02 * last]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
        axes.set_xlabel(f"training time by the clock, {unit.name}" if by_time else "step", fontsize=FONT, labelpad=3)
        name_picture(figure, heading, "training loss (mean over response tokens)")
        _loss_axis(axes, [losses for _, losses in lines.values()])
        return _paint(figure, axes, area, lines, looks)

    return draw(paint, name=name, title=title)


def _loss_axis(axes: Any, losses: Sequence[np.ndarray]) -> None:
    every = np.concatenate(losses)
    low, high = float(every.min()), float(every.max())
    if low > 0 and high / low >= 5:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.6, high * 1.15)
        log_axis(axes.yaxis, math.log10(high / low))
    else:
        room = 0.08 * (high - low) or 0.1
        axes.set_ylim(low - room, high + room)
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=STEPS))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))


def _paint(figure: Figure, axes: Any, area: Box, lines: Mapping[str, Line], looks: Mapping[str, Style]) -> bool:
    """Whether every label found a place of its own."""
    names: list[tuple[str, tuple[float, float], str]] = []
    over: list[Box] = []
    for label, (xs, losses) in lines.items():
        style = looks[label]
        axes.plot(xs, losses, color=style.colour, linewidth=1.1, linestyle=style.dash, zorder=2)
        axes.plot(xs[-1:], losses[-1:], style.shape, color=style.colour, markersize=4, markeredgewidth=0, zorder=3)
        seen = axes.transData.transform(np.column_stack([xs, losses]))
        over += [_around(*map(float, ends)) for ends in np.hstack([seen[:-1], seen[1:]])]
        names.append((label, (float(seen[-1][0]), float(seen[-1][1])), style.colour))
    labels = labels_of(figure, names)
    boxes = _places(labels, area, over)
    write(figure, labels, boxes)
    return clashes(boxes, []) == 0


def _places(labels: Sequence[Label], area: Box, over: Sequence[Box]) -> list[Box]:
    """In a column to the right if all lines end there; else each near the end of its line."""
    ends = [label.at[0] for label in labels]
    if max(ends) - min(ends) < 0.03 * (area.right - area.left):
        return stack([x.at for x in labels], [x.size for x in labels], area, left=max(ends) + GAP)
    marks = [Box(x - 2, y - 2, x + 2, y + 2) for x, y in (label.at for label in labels)]
    return place([x.at for x in labels], [x.size for x in labels], area, marks=marks, lines=over, over_line=1.5)


def _around(x0: float, y0: float, x1: float, y1: float) -> Box:
    """A piece of a line."""
    return Box(min(x0, x1) - 0.5, min(y0, y1) - 0.5, max(x0, x1) + 0.5, max(y0, y1) + 0.5)
