"""The picture of the principal angles between two adapters, layer by layer.

Must not know: adapters, files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..reporting.svg import SERIES, measured, to_svg

__all__ = ["picture_of"]


class Angles(Protocol):
    @property
    def first(self) -> str: ...
    @property
    def second(self) -> str: ...
    @property
    def component(self) -> str: ...
    @property
    def layer(self) -> int: ...
    @property
    def degrees(self) -> list[float]: ...


def picture_of(angles: Sequence[Angles]) -> str:
    """A point for each angle, over the layers; a colour for each pair of adapters and component.  As SVG."""
    with measured():
        figure = Figure(figsize=(6.4, 2.8), layout="constrained")
        axes = figure.add_subplot()
        series = list(dict.fromkeys((a.first, a.second, a.component) for a in angles))
        for i, key in enumerate(series):
            points = [(a.layer, d) for a in angles if (a.first, a.second, a.component) == key for d in a.degrees]
            label = f"{key[0]}, {key[1]}: {key[2]}"
            colour = SERIES[i % len(SERIES)][0]
            axes.scatter([x for x, _ in points], [y for _, y in points], s=14, color=colour, label=label, linewidths=0)
        axes.set_ylim(0, 93)
        axes.set_yticks([0, 30, 60, 90])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("layer")
        axes.set_ylabel("principal angle, degrees")
        axes.legend(frameon=False, loc="lower right", fontsize=8)
        return to_svg(figure, name="angles", title="Principal angles between the adapters, layer by layer")
