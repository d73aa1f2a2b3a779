"""`results.json` of a comparison, read into types; a malformed file is refused with the place where it is wrong.

Must not know: how results are shown.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from annotated_types import Ge, Gt
from pydantic import AfterValidator, BeforeValidator, Strict, TypeAdapter, ValidationError, ValidationInfo

from ...errors import DataError
from ...evaluation.paired import Paired

__all__ = ["Budget", "Results", "Run", "Score", "TaskFacts", "read_results"]

BASE = "base"
# What a run that did not fail has to tell, and what one that trained; null where it is not known.
_OF_A_RUN = ("train_task", "seed", "settings", "trained_parameters", "trained_percent", "scores")
_OF_A_TRAINING = ("train_seconds", "prepare_seconds", "steps", "epochs", "peak_memory_mb", "adapter_bytes", "curve")


def _finite(value: Any) -> Any:
    """None of what is not finite: no run means an infinite time, and NaN is how a score says that it is none."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _whole(value: Any) -> Any:
    value = _finite(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _rows(value: Any) -> Any:
    if value is None:
        raise ValueError("the number of test rows must be known")
    return _whole(value)


def _point(value: Any) -> Any:
    if not isinstance(value, Sequence) or len(value) != 3:
        raise ValueError(f"{value!r} is not [step, seconds, loss]")
    return [math.nan if part is None else part for part in value]


def _drawn(points: Iterable[Point]) -> tuple[Point, ...]:
    """Without those that have a number that is not finite: there is nothing to draw."""
    return tuple(point for point in points if all(map(math.isfinite, point)))


def _of_tasks(value: Any, info: ValidationInfo) -> Any:
    unknown = sorted(set(value) - set(info.context)) if isinstance(value, Mapping) and info.context is not None else []
    if unknown:
        raise ValueError(f"there is no task {unknown[0]!r}; tasks has {', '.join(info.context or ())}")
    return value


def _told(value: Any) -> Any:
    """A run with all that one of its kind has to tell."""
    if isinstance(value, Mapping) and value.get("error") is None:
        trains = value.get("method") != BASE
        missing = [name for name in (*_OF_A_RUN, *(_OF_A_TRAINING if trains else ())) if name not in value]
        if missing:
            raise ValueError(f"lacks {', '.join(missing)}")
    return value


def _filled(value: Any) -> Any:
    if value is not None and not len(value):
        raise ValueError("is empty, so there is nothing to report")
    return value


Measured: TypeAlias = Annotated[float, Strict()]
Signed: TypeAlias = Annotated[Measured | None, BeforeValidator(_finite)]
Number: TypeAlias = Annotated[Annotated[float, Strict(), Ge(0)] | None, BeforeValidator(_finite)]
Whole: TypeAlias = Annotated[Annotated[int, Strict(), Ge(0)] | None, BeforeValidator(_whole)]
# null is as good as nothing
Empty = BeforeValidator(lambda value: {} if value is None else value)
Values: TypeAlias = Annotated[Mapping[str, Any], Empty]
Listed = BeforeValidator(lambda value: () if value is None else value)
Point: TypeAlias = Annotated[tuple[Measured, Measured, Measured], BeforeValidator(_point)]


@dataclass(frozen=True)
class Budget:
    """What all methods had the same amount of."""

    kind: Literal["epochs", "seconds"]
    value: Annotated[float, Strict(), Gt(0)]


@dataclass(frozen=True)
class TaskFacts:
    """A task as the comparison used it.  Numbers that are not known are None here and below."""

    title: str
    metric: str
    chance: Signed = None
    train_rows: Whole = None
    test_rows: Whole = None
    notes: Annotated[tuple[str, ...], Listed] = ()
    """What was told of a file of one's own: how it is scored and why, what is odd about its rows."""


@dataclass(frozen=True)
class Score:
    """What one run got on one task, with the 95 % interval over the test rows."""

    n: Annotated[int, Strict(), Ge(0), BeforeValidator(_rows)]
    score: Signed
    low: Signed
    high: Signed
    metric: str
    seconds: Number = None
    unreadable: Whole = None
    """Rows in whose output no answer was found."""
    best_epoch: Whole = None
    """Which epoch is scored, where the best was chosen."""
    details: Values = field(default_factory=dict)
    """What is told beside the score, such as precision and recall of each label."""

    def __post_init__(self) -> None:
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"low={self.low} is above high={self.high}")


@dataclass(frozen=True)
class Run:
    """One training (or none, of the base model) and its scores; with `error`, one that failed."""

    method: str
    label: str
    train_task: str | None = None
    seed: Whole = None
    settings: Values = field(default_factory=dict)
    trained_parameters: Whole = None
    trained_percent: Number = None
    train_seconds: Number = None
    prepare_seconds: Number = None
    """Of `train_seconds`, to compute what training cannot change."""
    cpu_seconds: Number = None
    """Of the training, in all threads; where a GPU computes, none."""
    steps: Whole = None
    epochs: Number = None
    peak_memory_mb: Number = None
    adapter_bytes: Whole = None
    curve: Annotated[tuple[Point, ...], Listed, AfterValidator(_drawn)] = ()
    """(step, seconds, loss)"""
    command: str | None = None
    scores: Annotated[Mapping[str, Score], BeforeValidator(_of_tasks), Empty] = field(default_factory=dict)
    error: str | None = None
    key: str | None = None
    """Name of its folder."""
    trained: str | None = None
    """What it trained, a folder or a file, seen from the report."""

    @property
    def trains(self) -> bool:
        return self.method != BASE


@dataclass(frozen=True)
class Sample:
    """A row, and what each method answered."""

    row: Any
    prompt: str
    wanted: str
    answers: Mapping[str, Answer]
    """By label."""


@dataclass(frozen=True)
class Answer:
    output: str
    right: bool


@dataclass(frozen=True)
class Best:
    """The method with the highest score on a task, and the others beside it on the same rows."""

    best: str
    others: Mapping[str, Paired]


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
    tasks: Annotated[Mapping[str, TaskFacts], AfterValidator(_filled)]
    runs: Annotated[tuple[Annotated[Run, BeforeValidator(_told)], ...], AfterValidator(_filled), Listed]
    tried: Annotated[tuple[str, ...], Listed] = ()
    kind: str = "text"
    """`text`, or `classes` for a classification head."""
    held_out: Annotated[bool, BeforeValidator(bool)] = False
    """Scored on training rows that were not trained on."""
    config: Values = field(default_factory=dict)
    """The comparison as it was asked for."""
    samples: Annotated[Mapping[str, tuple[Sample, ...]], Empty] = field(default_factory=dict)
    """By task."""
    paired: Annotated[Mapping[str, Best], Empty] = field(default_factory=dict)
    """By task."""

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
    name, value = "the results", source
    if not isinstance(source, Mapping):
        name = str(source)
        try:
            value = json.loads(Path(source).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{name}: no results can be read from it: {error}") from error
    tasks = value.get("tasks") if isinstance(value, Mapping) else None
    try:
        found = _RESULTS.validate_python(value, context=tasks if isinstance(tasks, Mapping) else None)
        _check_together(found.runs)
    except ValidationError as error:
        raise DataError(f"{name}: {_said(error)}") from None
    except ValueError as error:
        raise DataError(f"{name}: {error}") from None
    return found


_RESULTS = TypeAdapter(Results)
_WORDS = {
    "string_type": "{input!r} must be a text",
    "float_type": "{input!r} must be a number or null",
    "int_type": "{input!r} must be a whole number",
    "tuple_type": "{input!r} must be a list",
    "greater_than_equal": "{input!r} is below {ge:g}",
    "greater_than": "{input!r} is not valid; use a number above {gt:g}",
    "literal_error": "{input!r} is not valid; use {expected}",
    "value_error": "{error}",
}


def _said(error: ValidationError) -> str:
    """The first thing that is wrong, and where."""
    every = error.errors()
    first, place = every[0], every[0]["loc"]
    if first["type"] == "missing":
        place = place[:-1]
        names = [str(e["loc"][-1]) for e in every if e["type"] == "missing" and e["loc"][:-1] == place]
        said = f"lacks {', '.join(names)}"
    else:
        words = _WORDS.get(first["type"], "{input!r} must be keys and values")
        said = words.format(input=first["input"], **first.get("ctx", {}))
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return f"{where.removeprefix('.') or 'the file'}: {said}"


def _check_together(runs: Sequence[Run]) -> None:
    """A label is one method, and no run is there twice: it would count as another seed."""
    methods: dict[str, str] = {}
    places: dict[tuple[Any, ...], int] = {}
    for i, run in enumerate(runs):
        if methods.setdefault(run.label, run.method) != run.method:
            raise ValueError(f"runs[{i}]: the label {run.label!r} is also that of the method {methods[run.label]!r}")
        for task in run.scores if run.error is None else ():
            first = places.setdefault((run.label, run.train_task, run.seed, task), i)
            if first != i:
                raise ValueError(f"runs[{i}]: label, train_task, seed and task {task!r} are those of runs[{first}]")
