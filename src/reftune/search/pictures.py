"""Pictures of a search: score against parameters with the Pareto front, score by trial, choices side by side.

Must not know: files, what a report says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ..comparison.report.canvas import log_axis, tick
from ..reporting.svg import FONT, INK, MUTED, PAPER, SERIES, measured, to_svg

__all__ = ["history", "pareto", "side_by_side"]

# Inches of a picture as wide as a phone, and of the one of all choices.
SIZE, TALL = (4.7, 3.6), (4.7, 5.2)
CHOICES = ("intervention", "positions", "layers", "r", "learning_rate", "warmup", "dropout", "score")
BLUE, ORANGE = SERIES[0][0], SERIES[1][0]
# Points between a trial of the front and its number.
BESIDE = 4

Entry = Mapping[str, Any]


def pareto(trials: Sequence[Entry], front: Sequence[int]) -> str:
    """Every trial with a score, and the line of those that none beats with as few parameters, by their numbers."""
    found = [entry for entry in trials if entry["score"] is not None]
    with measured():
        figure, axes = _figure(SIZE)
        axes.set_xscale("log")
        axes.plot([e["parameters"] for e in found], [e["score"] for e in found], "o", **_point(MUTED, 0.55))
        best = [entry for entry in found if entry["number"] in front]
        best.sort(key=lambda entry: entry["parameters"])
        axes.step([e["parameters"] for e in best], [e["score"] for e in best], where="post", color=BLUE, linewidth=1.2)
        axes.plot([e["parameters"] for e in best], [e["score"] for e in best], "o", **_point(BLUE))
        for entry in best:
            at, beside = (entry["parameters"], entry["score"]), (-BESIDE, BESIDE)
            axes.annotate(str(entry["number"]), at, beside, textcoords="offset points", ha="right", color=INK)
        axes.set_xlabel("trained parameters (logarithmic)")
        sizes = [entry["parameters"] for entry in found]
        log_axis(axes.xaxis, math.log10(max(sizes) / min(sizes)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
        _scores(axes)
        return to_svg(figure, name="search-pareto", title="score against trained parameters")


def history(trials: Sequence[Entry]) -> str:
    """Score of each trial in the order of their beginning, those that were stopped at the foot, and the best so far."""
    found = [entry for entry in trials if entry["score"] is not None]
    with measured():
        figure, axes = _figure(SIZE)
        axes.plot([e["number"] for e in found], [e["score"] for e in found], "o", **_point(MUTED, 0.55))
        xs = sorted(entry["number"] for entry in trials)
        scores = {entry["number"]: entry["score"] for entry in found}
        best, line = None, []
        for x in xs:
            best = max(value for value in (best, scores.get(x), -1.0) if value is not None)
            line.append(best)
        known = [(x, y) for x, y in zip(xs, line, strict=True) if y >= min(scores.values())]
        axes.step(*zip(*known, strict=True), where="post", color=BLUE, linewidth=1.2)
        _scores(axes)
        low, high = axes.get_ylim()
        foot = low - 0.06 * (high - low)
        stopped = [entry["number"] for entry in trials if entry["state"] == "stopped"]
        axes.plot(stopped, [foot] * len(stopped), "x", color=ORANGE, markersize=4, markeredgewidth=0.9)
        axes.set_ylim(foot - 0.05 * (high - low), high)
        axes.set_xlabel("trial (crosses: stopped early)")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        return to_svg(figure, name="search-history", title="score by trial")


def side_by_side(trials: Sequence[Entry], space: Mapping[str, Sequence[Any]]) -> str:
    """A line a trial down through its choices to its score (parallel coordinates): the better, the stronger."""
    found = sorted((e for e in trials if e["score"] is not None), key=lambda entry: entry["score"])
    low, high = found[0]["score"], found[-1]["score"]
    rows = range(len(CHOICES), 0, -1)
    with measured():
        figure, axes = _figure(TALL)
        for place, entry in enumerate(found):
            xs = [_place(name, entry, space, low, high, place) for name in CHOICES]
            share = (entry["score"] - low) / (high - low) if high > low else 0.5
            axes.plot(xs, rows, color=BLUE, alpha=0.08 + 0.8 * share**2, linewidth=0.7 + share)
        for y, name in zip(rows, CHOICES, strict=True):
            axes.axhline(y, color=MUTED, linewidth=0.7)
            for text, x in _ticks(name, space, low, high):
                axes.text(x, y + 0.06, text, fontsize=FONT - 2, va="bottom", ha="center", color=INK)
        axes.set_yticks(rows, [name.replace("_", "\n") for name in CHOICES])
        axes.set_xticks([])
        axes.set_xlim(-0.06, 1.06)
        axes.set_ylim(0.85, len(CHOICES) + 0.4)
        axes.tick_params(length=0)
        axes.grid(False)
        axes.spines[:].set_visible(False)
        return to_svg(figure, name="search-choices", title="choices of each trial and its score")


def _figure(size: tuple[float, float]) -> tuple[Figure, Any]:
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _point(colour: str, alpha: float = 1.0) -> dict[str, Any]:
    return {"color": colour, "alpha": alpha, "markersize": 5, "markeredgecolor": PAPER, "markeredgewidth": 0.6}


def _scores(axes: Any) -> None:
    axes.set_ylabel("score on rows that choose, points")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(100 * value)))


def _place(name: str, entry: Entry, space: Mapping[str, Sequence[Any]], low: float, high: float, place: int) -> float:
    """From 0 to 1; trials of one choice lie a little apart."""
    if name == "score":
        return (entry["score"] - low) / (high - low) if high > low else 0.5
    value = entry["chosen"][name]
    if name == "learning_rate":
        return _on_log(value, *space[name])
    choices = list(space[name])
    return (choices.index(value) + 0.5 + 0.3 * ((place * 0.618) % 1 - 0.5)) / len(choices)


def _ticks(name: str, space: Mapping[str, Sequence[Any]], low: float, high: float) -> list[tuple[str, float]]:
    if name == "score":
        ends = ((low, 0.0), (high, 1.0)) if high > low else ((low, 0.5),)
        return [(tick(round(100 * value, 1)), y) for value, y in ends]
    if name == "learning_rate":
        first, last = space[name]
        return [(f"{value:.0e}", _on_log(value, first, last)) for value in dict.fromkeys((first, last))]
    choices = list(space[name])
    return [(str(value), (i + 0.5) / len(choices)) for i, value in enumerate(choices)]


def _on_log(value: float, low: float, high: float) -> float:
    if high <= low:
        return 0.5
    return math.log(value / low) / math.log(high / low)
