"""Runs → what is told of each method: mean and spread over seeds, pooled intervals, costs, and who leads.

Must not know: how results are shown.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from .results import Results, Run, Score

__all__ = ["AVERAGE", "Estimate", "Lead", "MethodRow", "average", "lead", "mean_over_tasks", "method_rows", "pooled"]

AVERAGE = "average"
# normal quantile of a 95 % interval
Z95 = 1.96
BOUNDS = {
    "accuracy": (0.0, 1.0),
    "ROUGE-L": (0.0, 1.0),
    "word F1": (0.0, 1.0),
    "Matthews correlation": (-1.0, 1.0),
    "Pearson correlation": (-1.0, 1.0),
}


@dataclass(frozen=True)
class Estimate:
    """Mean of a score over seeds, how far the seeds lie apart, and a 95 % interval."""

    mean: float
    spread: float | None
    """Standard deviation over seeds; None of one seed."""
    low: float | None
    high: float | None
    rows: tuple[int, int]
    """Fewest and most test rows of a run."""
    seeds: int

    def overlaps(self, other: Estimate) -> bool:
        """True also where an interval is not known: nothing tells the two apart."""
        if None in (self.low, self.high, other.low, other.high):
            return True
        return self.low <= other.high and other.low <= self.high  # type: ignore[operator]


def pooled(scores: Sequence[Score]) -> Estimate | None:
    """Of one method on one task, a score for each seed; None where there is none.

    One seed: its own interval, that of the bootstrap over the rows.  Several: the rows are the same for all seeds, so
    that more seeds do not narrow what is due to the rows.  The mean of the seeds' half-widths, each side for
    itself, and 1.96 standard errors of the mean over seeds are put together as the root of the sum of their squares.
    """
    known = [score for score in scores if score.score is not None]
    if not known:
        return None
    values = [float(score.score) for score in known if score.score is not None]
    mean = statistics.fmean(values)
    rows = (min(score.n for score in known), max(score.n for score in known))
    spread = statistics.stdev(values) if len(values) > 1 else None
    if any(score.low is None or score.high is None for score in known):
        return Estimate(mean, spread, None, None, rows, len(known))
    if spread is None:
        return Estimate(mean, None, known[0].low, known[0].high, rows, 1)
    seed_part = Z95 * spread / math.sqrt(len(values))
    below = statistics.fmean(max(0.0, value - score.low) for value, score in zip(values, known, strict=True))  # type: ignore[operator]
    above = statistics.fmean(max(0.0, score.high - value) for value, score in zip(values, known, strict=True))  # type: ignore[operator]
    least, most = BOUNDS.get(known[0].metric, (-math.inf, math.inf))
    low, high = mean - math.hypot(below, seed_part), mean + math.hypot(above, seed_part)
    return Estimate(mean, spread, max(least, low), min(most, high), rows, len(values))


def average(estimates: Sequence[Estimate], by_seed: Sequence[float]) -> Estimate:
    """Over tasks, each counting the same.  Tasks have other rows, so their half-widths add up as squares.

    `by_seed`: the average of every seed that has all tasks.
    """
    count = len(estimates)
    mean = statistics.fmean(one.mean for one in estimates)
    spread = statistics.stdev(by_seed) if len(by_seed) > 1 else None
    rows = (min(one.rows[0] for one in estimates), max(one.rows[1] for one in estimates))
    seeds = min(one.seeds for one in estimates)
    lows = [one.mean - one.low for one in estimates if one.low is not None]
    highs = [one.high - one.mean for one in estimates if one.high is not None]
    if len(lows) < count or len(highs) < count:
        return Estimate(mean, spread, None, None, rows, seeds)
    return Estimate(mean, spread, mean - math.hypot(*lows) / count, mean + math.hypot(*highs) / count, rows, seeds)


@dataclass(frozen=True)
class MethodRow:
    """A line of the main table."""

    name: str
    """The label; with the training task, where a task is scored after several trainings."""
    label: str
    method: str
    runs: tuple[Run, ...]
    scores: dict[str, Estimate] = field(default_factory=dict)
    """By task, and `AVERAGE` where every task of several has a score."""

    @property
    def trains(self) -> bool:
        return any(run.trains for run in self.runs)

    @property
    def seeds(self) -> tuple[int, ...]:
        """All that a training had."""
        return tuple(sorted({run.seed for run in self.runs if run.seed is not None and run.trains}))

    def of(self, task: str) -> tuple[Run, ...]:
        """The runs with a score on a task; all of them for the average."""
        if task == AVERAGE:
            return self.runs
        return tuple(run for run in self.runs if task in run.scores and run.scores[task].score is not None)

    def mean_of(self, name: str, task: str = AVERAGE) -> float | None:
        """Of a field of the runs that a score is of."""
        return mean_over_tasks(self.of(task), name)


def mean_over_tasks(runs: Iterable[Run], name: str) -> float | None:
    """Mean of a field over seeds, then over training tasks, so that each of these counts the same; None if unknown."""
    known: dict[str | None, list[float]] = {}
    for run in runs:
        value = getattr(run, name)
        if value is not None:
            known.setdefault(run.train_task, []).append(value)
    return statistics.fmean(map(statistics.fmean, known.values())) if known else None


def method_rows(results: Results) -> list[MethodRow]:
    """A row for each label, in the order of the file; several where trainings of a label share a task."""
    groups: dict[str, list[Run]] = {}
    for run in results.done:
        groups.setdefault(run.label, []).append(run)
    rows: list[MethodRow] = []
    for label, runs in groups.items():
        if not _ambiguous(runs):
            rows.append(_row(results, label, label, runs))
            continue
        for train_task in dict.fromkeys(run.train_task for run in runs):
            part = [run for run in runs if run.train_task == train_task]
            rows.append(_row(results, f"{label}, trained on {train_task}", label, part))
    return rows


def _ambiguous(runs: Iterable[Run]) -> bool:
    """Whether a task is scored after more than one training task."""
    trained: dict[str, str | None] = {}
    return any(
        run.trains and trained.setdefault(task, run.train_task) != run.train_task for run in runs for task in run.scores
    )


def _row(results: Results, name: str, label: str, runs: Sequence[Run]) -> MethodRow:
    row = MethodRow(name, label, runs[0].method, tuple(runs))
    for task in results.tasks:
        found = [run.scores[task] for run in row.of(task)]
        # an untrained model has one score, however often it is told, but where its head is drawn by a seed
        drawn = row.trains or len({run.seed for run in row.runs}) > 1
        estimate = pooled(found if drawn else found[:1])
        if estimate is not None:
            row.scores[task] = estimate
    if len(results.tasks) > 1 and len(row.scores) == len(results.tasks):
        row.scores[AVERAGE] = average(list(row.scores.values()), _averages_by_seed(results, row) if row.trains else [])
    return row


def _averages_by_seed(results: Results, row: MethodRow) -> list[float]:
    found: dict[int | None, dict[str, float]] = {}
    for task in results.tasks:
        for run in row.of(task):
            score = run.scores[task].score
            assert score is not None
            found.setdefault(run.seed, {})[task] = score
    return [statistics.fmean(scores.values()) for scores in found.values() if len(scores) == len(results.tasks)]


@dataclass(frozen=True)
class Lead:
    """The best row of a column, and those that its interval does not tell from it."""

    best: MethodRow
    overlapping: tuple[MethodRow, ...]
    others: int
    """How many rows there are beside the best."""

    @property
    def clear(self) -> bool:
        return self.others > 0 and not self.overlapping


def lead(rows: Sequence[MethodRow], task: str) -> Lead | None:
    """None where no row has a score."""
    ranked = sorted((row for row in rows if task in row.scores), key=lambda row: -row.scores[task].mean)
    if not ranked:
        return None
    best = ranked[0]
    close = tuple(row for row in ranked[1:] if row.scores[task].overlaps(best.scores[task]))
    return Lead(best, close, len(ranked) - 1)
