"""`Task`: what a benchmark set asks, what training teaches, how an output is read, and how answers are scored.

Must not know: models, tokenizers, where files lie.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from ...errors import ReftuneError
from ..scores import ACCURACY, Metric

__all__ = ["Classes", "Given", "Hub", "Row", "Source", "Task", "same_text"]

Row: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Hub:
    """A split of a data set on the Hub, and how one of its rows becomes a row as in the file."""

    name: str
    config: str | None
    split: str
    convert: Callable[[Row], Row] = dict


@dataclass(frozen=True)
class Source:
    """Where the rows of a split are: a file below the data folder, else the Hub."""

    file: str
    hub: Hub | None = None
    copies: int = 1
    """Examples that each row stands for; the task tells them apart by their `id`."""


@dataclass(frozen=True)
class Given:
    """Rows that are there already, each with its `id`: those of a file of one's own."""

    rows: Sequence[Row]


@dataclass(frozen=True)
class Classes:
    """A task as a classification of one text or two, for models with a classification head."""

    texts: Callable[[Row], tuple[str, str | None]]
    label: Callable[[Row], float]
    """Index of the class; of a regression the value."""
    names: tuple[str, ...] = ()
    """None for a regression."""

    @property
    def is_regression(self) -> bool:
        return not self.names


def same_text(answer: str, reference: str) -> bool:
    return answer == reference


@dataclass(frozen=True)
class Task:
    """A benchmark set.  `TASKS` has one entry for each; what they have in common is told here once."""

    name: str
    title: str
    """As tables show it."""
    sources: Mapping[str, Source | Given]
    """`train` and `test`, as far as there are such rows."""
    prompt: Callable[[Row], Mapping[str, Any]]
    """A row as a record of `reftune.data`, without its response."""
    completion: Callable[[Row], str]
    """The response that training teaches."""
    reference: Callable[[Row], str]
    """The right answer."""
    extract: Callable[[str], str | None]
    """The answer in what a model wrote; None where there is none."""
    matches: Callable[[str, str], bool] = same_text
    """Whether an answer is the reference."""
    metric: Metric | None = ACCURACY
    """None where only a judge can score."""
    numbers: Callable[[str | None, str], tuple[float, float]] | None = None
    """(answer, reference) as the metric takes them; by default (whether it matches, 1)."""
    generation: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of `generate`, as published; greedy unless they say otherwise."""
    classes: Classes | None = None
    """The same rows as a classification, for encoders."""
    chance: float | None = None
    """Score of a guess."""
    details: Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]] | None = None
    """What is told of all examples beside the score."""
    trains_on: Callable[[Row], Mapping[str, Any]] | None = None
    """A row as a record to train on, where that is not its prompt and `completion`."""
    entry: Mapping[str, Any] | None = None
    """What a comparison calls it by, where that is not its name: the file of a task of one's own."""
    score_form: str = ""
    """Of a task of one's own: how it is scored, as `score` names it."""
    notes: tuple[str, ...] = ()
    """What is to be told of its rows and its score before anything is done."""

    @property
    def called(self) -> Any:
        """As the settings of a run have it."""
        return self.name if self.entry is None else dict(self.entry)

    def record(self, row: Row) -> dict[str, Any]:
        """A row as a record to train on."""
        if self.trains_on is not None:
            return dict(self.trains_on(row))
        prompt = dict(self.prompt(row))
        key = "output" if "instruction" in prompt else "completion"
        return {**prompt, key: self.completion(row)}

    def is_right(self, answer: str | None, reference: str) -> bool:
        return answer is not None and self.matches(answer, reference)

    def pair(self, answer: str | None, reference: str) -> tuple[float, float]:
        """What the metric is computed from, for one row."""
        if self.numbers is not None:
            return self.numbers(answer, reference)
        return float(self.is_right(answer, reference)), 1.0

    def score(self, pairs: np.ndarray) -> float:
        """Of an array [rows, 2] of `pair`; not for a task without a metric."""
        if self.metric is None:
            raise ReftuneError(f"the task {self.name!r} has no score of its own: a judge has to compare its outputs")
        return self.metric.of(pairs[:, 0], pairs[:, 1])
