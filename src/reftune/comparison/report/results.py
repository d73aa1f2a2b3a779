"""`results.json` of a comparison, read into types; a malformed file is refused with the place where it is wrong.

Must not know: how results are shown.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

from ...errors import DataError

__all__ = ["Budget", "Results", "Run", "Score", "TaskFacts", "read_results"]

BASE = "base"


@dataclass(frozen=True)
class Budget:
    """What all methods had the same amount of."""

    kind: str
    """`epochs` or `seconds`."""
    value: float


@dataclass(frozen=True)
class TaskFacts:
    """A task as the comparison used it.  Numbers that are not known are None here and below."""

    title: str
    metric: str
    chance: float | None = None
    train_rows: int | None = None
    test_rows: int | None = None


@dataclass(frozen=True)
class Score:
    """What one run got on one task, with the 95 % interval over the test rows."""

    n: int
    score: float | None
    low: float | None
    high: float | None
    metric: str
    seconds: float | None = None
    unreadable: int | None = None
    """Rows in whose output no answer was found."""
    best_epoch: int | None = None
    """Which epoch is scored, where the best was chosen."""


@dataclass(frozen=True)
class Run:
    """One training (or none, of the base model) and its scores; with `error`, one that failed."""

    method: str
    label: str
    train_task: str | None = None
    seed: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    trained_parameters: int | None = None
    trained_percent: float | None = None
    train_seconds: float | None = None
    prepare_seconds: float | None = None
    """Of `train_seconds`, to compute what training cannot change."""
    cpu_seconds: float | None = None
    """Of the training, in all threads; where a GPU computes, none."""
    steps: int | None = None
    epochs: float | None = None
    peak_memory_mb: float | None = None
    adapter_bytes: int | None = None
    curve: tuple[tuple[float, float, float], ...] = ()
    """(step, seconds, loss)"""
    command: str | None = None
    scores: Mapping[str, Score] = field(default_factory=dict)
    error: str | None = None
    key: str | None = None
    """Name of its folder."""

    @property
    def trains(self) -> bool:
        return self.method != BASE


@dataclass(frozen=True)
class Results:
    """A comparison."""

    title: str
    command: str
    date: str
    hardware: str
    versions: Mapping[str, str]
    model: str
    budget: Budget
    tasks: Mapping[str, TaskFacts]
    runs: tuple[Run, ...]
    tried: tuple[str, ...] = ()
    kind: str = "text"
    """`text`, or `classes` for a classification head."""
    held_out: bool = False
    """Scored on training rows that were not trained on."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The comparison as it was asked for."""

    @property
    def done(self) -> tuple[Run, ...]:
        return tuple(run for run in self.runs if run.error is None)

    @property
    def failed(self) -> tuple[Run, ...]:
        return tuple(run for run in self.runs if run.error is not None)


def read_results(source: Path | str | Mapping[str, Any]) -> Results:
    """A file, or what such a file holds.

    Raises:
        DataError: it cannot be read or is malformed; the message names the file and the place in it.
    """
    if isinstance(source, Mapping):
        return _Reader("the results").results(source)
    path = Path(source)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: no results can be read from it: {error}") from error
    return _Reader(str(path)).results(value)


# What a run that did not fail has to tell, and what one that trained; null where it is not known.
_OF_A_RUN = ("train_task", "seed", "settings", "trained_parameters", "trained_percent", "scores")
_OF_A_TRAINING = ("train_seconds", "prepare_seconds", "steps", "epochs", "peak_memory_mb", "adapter_bytes", "curve")


class _Reader:
    """Every method takes a value and where it stands, and returns it in its type."""

    def __init__(self, name: str) -> None:
        self.name = name

    def refuse(self, where: str, problem: str) -> NoReturn:
        raise DataError(f"{self.name}: {where}: {problem}")

    def results(self, value: Any) -> Results:
        given = self.keys(value, "the file", Results)
        tasks = {name: self.task(task, f"tasks.{name}") for name, task in self.mapping(given["tasks"], "tasks").items()}
        runs = tuple(self.run(run, f"runs[{i}]", tasks) for i, run in enumerate(self.listed(given["runs"], "runs")))
        if not tasks or not runs:
            self.refuse("tasks" if not tasks else "runs", "is empty, so there is nothing to report")
        self.check_together(runs)
        texts = {name: self.text(given[name], name) for name in ("title", "command", "date", "hardware", "model")}
        return Results(
            **texts,
            versions={
                name: self.text(version, f"versions.{name}")
                for name, version in self.mapping(given["versions"], "versions").items()
            },
            budget=self.budget(given["budget"]),
            tasks=tasks,
            runs=runs,
            tried=tuple(self.text(t, f"tried[{i}]") for i, t in enumerate(self.listed(given.get("tried"), "tried"))),
            kind=self.text(given.get("kind", "text"), "kind"),
            held_out=bool(given.get("held_out")),
            config=self.mapping(given.get("config") or {}, "config"),
        )

    def budget(self, value: Any) -> Budget:
        given = self.keys(value, "budget", Budget)
        if given["kind"] not in ("epochs", "seconds"):
            self.refuse("budget.kind", f"{given['kind']!r} is not valid; use 'epochs' or 'seconds'")
        amount = self.number(given["value"], "budget.value")
        if not amount:
            self.refuse("budget.value", f"{given['value']!r} is not valid; use a number above 0")
        return Budget(given["kind"], amount)

    def task(self, value: Any, where: str) -> TaskFacts:
        given = self.keys(value, where, TaskFacts)
        return TaskFacts(
            title=self.text(given["title"], f"{where}.title"),
            metric=self.text(given["metric"], f"{where}.metric"),
            chance=self.number(given.get("chance"), f"{where}.chance", least=-math.inf),
            train_rows=self.whole(given.get("train_rows"), f"{where}.train_rows"),
            test_rows=self.whole(given.get("test_rows"), f"{where}.test_rows"),
        )

    def run(self, value: Any, where: str, tasks: Mapping[str, TaskFacts]) -> Run:
        given = self.keys(value, where, Run)
        if given.get("error") is None:
            self.present(given, where, _OF_A_RUN)
            if given["method"] != BASE:
                self.present(given, where, _OF_A_TRAINING)
        numbers = ("trained_percent", "train_seconds", "prepare_seconds", "cpu_seconds", "epochs", "peak_memory_mb")
        counts = ("trained_parameters", "steps", "adapter_bytes")
        texts = ("train_task", "command", "error", "key")
        measured: dict[str, Any] = {
            **{name: self.number(given.get(name), f"{where}.{name}") for name in numbers},
            **{name: self.whole(given.get(name), f"{where}.{name}") for name in counts},
            **{name: self.text(given[name], f"{where}.{name}") for name in texts if given.get(name) is not None},
        }
        return Run(
            method=self.text(given["method"], f"{where}.method"),
            label=self.text(given["label"], f"{where}.label"),
            seed=self.whole(given.get("seed"), f"{where}.seed"),
            settings=self.mapping(given.get("settings") or {}, f"{where}.settings"),
            curve=self.curve(given.get("curve"), f"{where}.curve"),
            scores=self.scores(given.get("scores"), f"{where}.scores", tasks),
            **measured,
        )

    def scores(self, value: Any, where: str, tasks: Mapping[str, TaskFacts]) -> dict[str, Score]:
        found = self.mapping({} if value is None else value, where)
        unknown = sorted(set(found) - set(tasks))
        if unknown:
            self.refuse(where, f"there is no task {unknown[0]!r}; tasks has {', '.join(tasks)}")
        return {name: self.score(score, f"{where}.{name}") for name, score in found.items()}

    def score(self, value: Any, where: str) -> Score:
        given = self.keys(value, where, Score)
        score, low, high = (
            self.number(given[name], f"{where}.{name}", least=-math.inf) for name in ("score", "low", "high")
        )
        if low is not None and high is not None and low > high:
            self.refuse(where, f"low={low} is above high={high}")
        n = self.whole(given["n"], f"{where}.n")
        if n is None:
            self.refuse(f"{where}.n", "the number of test rows must be known")
        return Score(
            n=n,
            score=score,
            low=low,
            high=high,
            metric=self.text(given["metric"], f"{where}.metric"),
            seconds=self.number(given.get("seconds"), f"{where}.seconds"),
            unreadable=self.whole(given.get("unreadable"), f"{where}.unreadable"),
            best_epoch=self.whole(given.get("best_epoch"), f"{where}.best_epoch"),
        )

    def curve(self, value: Any, where: str) -> tuple[tuple[float, float, float], ...]:
        """Points with a number that is not finite are left out: there is nothing to draw."""
        found: list[tuple[float, float, float]] = []
        for i, point in enumerate(self.listed(value, where)):
            here = f"{where}[{i}]"
            parts = self.listed(point, here)
            if len(parts) != 3:
                self.refuse(here, f"{point!r} is not [step, seconds, loss]")
            step, seconds, loss = (self.number(part, here, least=-math.inf) for part in parts)
            if step is not None and seconds is not None and loss is not None:
                found.append((step, seconds, loss))
        return tuple(found)

    def check_together(self, runs: tuple[Run, ...]) -> None:
        """A label is one method, and no run is there twice: it would count as another seed."""
        methods: dict[str, str] = {}
        places: dict[tuple[Any, ...], int] = {}
        for i, run in enumerate(runs):
            if methods.setdefault(run.label, run.method) != run.method:
                self.refuse(f"runs[{i}]", f"the label {run.label!r} is also that of the method {methods[run.label]!r}")
            if run.error is not None:
                continue
            for task in run.scores:
                key = (run.label, run.train_task, run.seed, task)
                if key in places:
                    self.refuse(
                        f"runs[{i}]", f"label, train_task, seed and task {task!r} are those of runs[{places[key]}]"
                    )
                places[key] = i

    def keys(self, value: Any, where: str, kind: type) -> Mapping[str, Any]:
        """With the fields of `kind` that have no default; what else is there is left to those who wrote it."""
        found = self.mapping(value, where)
        required = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
        self.present(found, where, required)
        return found

    def present(self, found: Mapping[str, Any], where: str, names: Any) -> None:
        missing = [name for name in names if name not in found]
        if missing:
            self.refuse(where, f"lacks {', '.join(missing)}")

    def mapping(self, value: Any, where: str) -> Mapping[str, Any]:
        if not isinstance(value, Mapping):
            self.refuse(where, f"{value!r} must be keys and values")
        return value

    def listed(self, value: Any, where: str) -> list[Any] | tuple[Any, ...]:
        if value is None:
            return []
        if not isinstance(value, (list, tuple)):
            self.refuse(where, f"{value!r} must be a list")
        return value

    def text(self, value: Any, where: str) -> str:
        if not isinstance(value, str):
            self.refuse(where, f"{value!r} must be a text")
        return value

    def number(self, value: Any, where: str, *, least: float = 0) -> float | None:
        """None of what is not finite: no run means an infinite time, and NaN is how a score says that it is none."""
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self.refuse(where, f"{value!r} must be a number or null")
        if not math.isfinite(value):
            return None
        if value < least:
            self.refuse(where, f"{value!r} is below {least:g}")
        return float(value)

    def whole(self, value: Any, where: str) -> int | None:
        found = self.number(value, where)
        if found is not None and found != int(found):
            self.refuse(where, f"{value!r} must be a whole number")
        return None if found is None else int(found)
