"""Where an adapter edits and how much: the norm of the edit over the norm of the state that it edits.

Must not know: what the edits lead to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .probe import Probe
from .switches import Text, size

__all__ = ["Sizes", "edit_sizes", "ratios"]


@dataclass(frozen=True)
class Sizes:
    """‖edit‖ / ‖state‖ over some texts.  Arrays are [site][position], None where no text is edited."""

    sites: list[str]
    positions: list[str]
    """As `Probe.labels` has them."""
    mean: list[list[float | None]]
    std: list[list[float | None]]
    """Of the texts about their mean, 0 for one text."""
    count: list[list[int]]


def ratios(probe: Probe, text: Text) -> dict[str, dict[int, tuple[float, float]]]:
    """By site and column (norm of the edit, norm of the state before it)."""
    seen = probe.seen(text)
    found: dict[str, dict[int, tuple[float, float]]] = {}
    for site in probe.sites:
        edits, states = seen.delta(site.name), seen.before[site.name]
        found[site.name] = {column: (size(edits[column]), size(states[column])) for column in probe.columns(site, text)}
    return found


def edit_sizes(probe: Probe, texts: Sequence[Text], *, progress: Callable[[int], None] | None = None) -> Sizes:
    """Mean and spread of ‖edit‖ / ‖state‖ at every site and position; `progress` gets the number of texts done."""
    at: dict[tuple[str, str], list[float]] = {}
    for done, text in enumerate(texts, start=1):
        labels = probe.labels(text)
        for site, columns in ratios(probe, text).items():
            for column, (edit, state) in columns.items():
                at.setdefault((site, labels[column]), []).append(edit / state if state else math.nan)
        if progress is not None:
            progress(done)
    sites = [site.name for site in probe.sites]
    positions = sorted({label for _, label in at}, key=_order)
    cells = [[at.get((site, position), []) for position in positions] for site in sites]
    return Sizes(
        sites,
        positions,
        [[_mean(cell) for cell in row] for row in cells],
        [[_std(cell) for cell in row] for row in cells],
        [[len(cell) for cell in row] for row in cells],
    )


def _order(label: str) -> tuple[int, int]:
    """f1, f2 …, then l2, l1, then r1, r2 …"""
    kind, number = label[0], int(label[1:])
    return "flr".index(kind), -number if kind == "l" else number


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _std(values: Sequence[float]) -> float | None:
    mean = _mean(values)
    return None if mean is None else math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
