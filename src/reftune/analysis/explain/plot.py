"""The pictures of what an adapter does: a map of sites and tokens, bars, and lines along the layers.

Must not know: files, how numbers came about.
"""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ...reporting.svg import FONT, INK, SERIES, measured

__all__ = ["bars", "heat_map", "lines", "points"]

# Inches: of a cell, of a row, and of what stands around.
CELL, ROW, LEFT, TOP = 0.45, 0.2, 1.15, 0.1
# Of a letter that stands upright below a column.
LETTER = 0.075
COLOUR, AGAINST = SERIES[0][0], SERIES[4][0]
PALE, FULL = 0.05, 0.8
# Columns up to which a cell has its number in it.
NUMBERED = 24


def heat_map(
    cells: Sequence[Sequence[float | None]], rows: Sequence[str], columns: Sequence[str], *, factor: float = 100
) -> Figure:
    """`cells` [row][column], the first row at the bottom as in the model; None stays empty.

    The colour is the share of the largest amount, another one for values below 0; the number is value × `factor`.
    """
    most = max((abs(cell) for row in cells for cell in row if cell is not None), default=0.0) or 1.0
    bottom = 0.2 + LETTER * max(map(len, columns), default=0)
    width, height = LEFT + max(2.5, CELL * len(columns)), bottom + ROW * len(rows) + TOP
    with measured():
        figure = Figure(figsize=(width, height))
        FigureCanvasAgg(figure)
        wide, high = width - LEFT - TOP, height - bottom - TOP
        axes = figure.add_axes((LEFT / width, bottom / height, wide / width, high / height))
        for y, row in enumerate(cells):
            for x, cell in enumerate(row):
                if cell is None:
                    continue
                alpha = PALE + (FULL - PALE) * min(1.0, abs(cell) / most)
                colour = AGAINST if cell < 0 else COLOUR
                axes.add_patch(Rectangle((x, y), 0.96, 0.92, facecolor=colour, alpha=alpha, linewidth=0))
                if len(columns) <= NUMBERED:
                    text = f"{factor * cell:.0f}"
                    axes.text(x + 0.48, y + 0.44, text, ha="center", va="center", color=INK, fontsize=FONT - 2)
        axes.set_xlim(0, max(1, len(columns)))
        axes.set_ylim(0, max(1, len(rows)))
        axes.set_xticks([x + 0.48 for x in range(len(columns))], list(columns), rotation=90)
        axes.set_yticks([y + 0.46 for y in range(len(rows))], list(rows))
        axes.tick_params(length=0, labelsize=FONT - 2)
        axes.grid(False)
        axes.spines[:].set_visible(False)
    return figure


def bars(names: Sequence[str], values: Sequence[float], *, label: str) -> Figure:
    """A bar a name, the first on top."""
    height = 0.55 + ROW * len(names) + TOP
    with measured():
        figure = Figure(figsize=(5.0, height))
        FigureCanvasAgg(figure)
        axes = figure.add_axes((LEFT / 5.0, 0.5 / height, (4.9 - LEFT) / 5.0, (height - 0.5 - TOP) / height))
        axes.barh(range(len(names)), values, color=[AGAINST if value < 0 else COLOUR for value in values], height=0.75)
        axes.set_yticks(range(len(names)), list(names))
        axes.invert_yaxis()
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0, labelsize=FONT - 2)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(label)
    return figure


def lines(x: Sequence[int], series: Sequence[tuple[str, Sequence[float]]], *, label: str) -> Figure:
    """A line a series over the layers, with its name in the legend where there are several."""
    with measured():
        figure = Figure(figsize=(5.0, 2.6))
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0.13, 0.2, 0.85, 0.76))
        for (name, values), (colour, _) in zip(series, SERIES[1::-1] if len(series) > 1 else SERIES, strict=False):
            axes.plot(x, values, color=colour, label=name, marker="o", markersize=2.5, linewidth=1.4)
        axes.set_xlabel("layer")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=min(0, *(value for _, values in series for value in values)) if x else 0)
        if len(series) > 1:
            axes.legend(frameon=False, loc="upper left")
    return figure


def points(at: Sequence[tuple[int, float]], *, label: str, top: float, ticks: Sequence[float]) -> Figure:
    """A point for each pair (layer, value), from 0 up to `top`."""
    with measured():
        figure = Figure(figsize=(5.0, 2.6))
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0.13, 0.2, 0.85, 0.76))
        axes.scatter([x for x, _ in at], [y for _, y in at], s=14, color=COLOUR, linewidths=0)
        axes.set_xlabel("layer")
        axes.set_ylabel(label)
        axes.set_ylim(0, top)
        axes.set_yticks(list(ticks))
    return figure
