"""The heat map of memorisation: layer × length, a field for each kind of text and one for codebooks.

Must not know: files, how cells are trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..reporting.svg import FONT, INK, SERIES, measured

__all__ = ["heat_map"]

# Inches of a cell, of the narrowest field, which has room for its title, and of what stands around a field.
CELL, ROW, FIELD = 0.62, 0.3, 1.7
LEFT, BOTTOM, TOP, BETWEEN = 0.55, 0.5, 0.35, 0.55
COLOUR = SERIES[0][0]
# How much of the colour a share of 0 and one of 1 has; more would hide the number.
PALE, FULL = 0.04, 0.75


def heat_map(fields: Mapping[str, Sequence[Mapping[str, Any]]], units: Mapping[str, str]) -> Figure:
    """`fields`: title → cells with layer, size, held and recall; `units`: title → what the columns count.

    The colour is the share that is held, the number how many.  A place without a cell was not tried.
    """
    shapes = {
        title: (sorted({cell["layer"] for cell in cells}), sorted({cell["size"] for cell in cells}))
        for title, cells in fields.items()
    }
    tallest = ROW * max(len(layers) for layers, _ in shapes.values())
    height = BOTTOM + tallest + TOP
    widths = [max(FIELD, CELL * len(sizes)) for _, sizes in shapes.values()]
    width = LEFT + sum(widths) + BETWEEN * (len(widths) - 1)
    with measured():
        figure = Figure(figsize=(width, height))
        FigureCanvasAgg(figure)
        left = LEFT
        for wide, (title, cells) in zip(widths, fields.items(), strict=True):
            layers, sizes = shapes[title]
            high = ROW * len(layers)
            axes = figure.add_axes((left / width, BOTTOM / height, wide / width, high / height))
            _draw(axes, cells, layers, sizes)
            axes.set_title(title, fontsize=FONT, loc="left")
            axes.set_xlabel(units[title])
            if left == LEFT:
                axes.set_ylabel("layer")
            left += wide + BETWEEN
    return figure


def _draw(axes: Axes, cells: Sequence[Mapping[str, Any]], layers: list[int], sizes: list[int]) -> None:
    for cell in cells:
        x, y = sizes.index(cell["size"]), layers.index(cell["layer"])
        alpha = PALE + (FULL - PALE) * float(cell["recall"])
        axes.add_patch(Rectangle((x, y), 0.96, 0.94, facecolor=COLOUR, alpha=alpha, linewidth=0))
        axes.text(x + 0.48, y + 0.47, str(cell["held"]), ha="center", va="center", color=INK, fontsize=FONT)
    axes.set_xlim(0, len(sizes))
    axes.set_ylim(0, len(layers))
    axes.set_xticks([x + 0.48 for x in range(len(sizes))], [str(size) for size in sizes])
    axes.set_yticks([y + 0.47 for y in range(len(layers))], [str(layer) for layer in layers])
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
