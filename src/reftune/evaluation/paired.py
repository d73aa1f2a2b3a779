"""Two models on the same rows: whether the one is better, or whether chance alone would do that.

Right and wrong answers: McNemar's test (1947), exact, of the rows that only one of the two has right.  Other scores,
and means over several trainings: a bootstrap of the difference over the rows.

Must not know: where answers come from, how this is shown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np

from .scores import ACCURACY, Metric

__all__ = ["Answers", "Paired", "paired"]

Answers: TypeAlias = Mapping[Any, tuple[float, float]]
"""Of one model: by row what the metric is computed from (`Task.pair`)."""

RESAMPLES = 1000
SURE = 0.05


@dataclass(frozen=True)
class Paired:
    """The first beside the second."""

    rows: int
    difference: float
    """Of their scores; above 0 where the first is better."""
    low: float
    high: float
    """95 % interval of the difference, by bootstrap over the rows."""
    only_first: int | None = None
    only_second: int | None = None
    """Rows that one of them alone has right, and"""
    p: float | None = None
    """how often chance alone would part these at least so unevenly; None where rows are not right or wrong."""

    @property
    def told_apart(self) -> bool:
        if self.p is not None:
            return self.p < SURE
        return self.low > 0 or self.high < 0

    def values(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)


def mcnemar(one: int, other: int) -> float:
    """Two-sided exact p: of so many rows, each as likely to be the one's as the other's."""
    count = one + other
    tail = sum(math.comb(count, i) for i in range(min(one, other) + 1))
    return min(1.0, 2 * tail / 2**count)


def paired(metric: Metric, first: Sequence[Answers], second: Sequence[Answers], *, seed: int = 0) -> Paired | None:
    """`first` beside `second`, each the answers of one training or of several, whose scores are averaged.

    Rows that only one side has are left out; None if none are left.
    """
    rows = sorted(set().union(*first) & set().union(*second), key=str)
    if not rows:
        return None
    sides = [[_Side.of(answers, rows) for answers in side] for side in (first, second)]

    def difference(chosen: np.ndarray) -> float:
        scores = [np.mean([side.score(metric, chosen) for side in group]) for group in sides]
        return float(scores[0] - scores[1])

    rng = np.random.default_rng(seed)
    drawn = [difference(rng.integers(0, len(rows), len(rows))) for _ in range(RESAMPLES)]
    low, high = (float(value) for value in np.nanpercentile(drawn, (2.5, 97.5)))
    found = Paired(len(rows), difference(np.arange(len(rows))), low, high)
    if metric is not ACCURACY or any(len(group) > 1 for group in sides):
        return found
    one, other = (group[0].pairs[:, 0] == group[0].pairs[:, 1] for group in sides)
    only_first, only_second = int(np.sum(one & ~other)), int(np.sum(other & ~one))
    return Paired(len(rows), found.difference, low, high, only_first, only_second, mcnemar(only_first, only_second))


@dataclass(frozen=True)
class _Side:
    pairs: np.ndarray
    """[rows, 2]"""
    known: np.ndarray
    """Whether this training was scored on the row: halves of a set differ by seed."""

    @staticmethod
    def of(answers: Answers, rows: Sequence[Any]) -> _Side:
        nothing = (math.nan, math.nan)
        return _Side(
            np.array([answers.get(row, nothing) for row in rows], dtype=float),
            np.array([row in answers for row in rows]),
        )

    def score(self, metric: Metric, chosen: np.ndarray) -> float:
        known = chosen[self.known[chosen]]
        return metric.of(self.pairs[known, 0], self.pairs[known, 1]) if len(known) else math.nan
