"""A search as a configuration: the model, the task, the budget, and what is tried.

Must not know: how a trial is done.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from ..comparison.study import check_seeds
from ..errors import ReftuneError
from ..evaluation.own import tasks_of
from ..evaluation.tasks.base import Task
from ..files import key_of
from ..training.run import given_of, keys_and_values
from .budget import Budget
from .space import Space

__all__ = ["SCORINGS", "SearchConfig"]

SCORINGS = ("auto", "forced", "generated")
SAMPLERS = ("tpe", "random")


@dataclass
class SearchConfig:
    """What `reftune search` reads from YAML.  Unknown keys are refused."""

    model: str
    """Folder or Hub name of the base model, or `smollm2`."""
    task: str | dict[str, Any]
    """Name of a task, a file of records, or a mapping with file, train, split, score, answer, name.  Only rows to train
    on are looked at; a file alone is such rows."""
    budget: str | int = "40 trials"
    """`40 trials`, `30m`, `2h`: of all processes together, the last trainings included."""
    title: str = ""
    epochs: float = 3
    """Passes of a trial that is not stopped."""
    batch_size: int = 16
    max_length: int | None = 512
    train_rows: int | None = None
    """So many rows to train on, drawn once; none: all that are not held out."""
    held_out: int | None = None
    """Rows that are not trained on: they choose, and as many others tell of the best.  None: a quarter, at most 300."""
    scoring: str = "auto"
    """`forced`: an answer is right if each of its tokens is the likeliest; `generated`: answers are generated and read
    as `reftune eval` does; `auto`: forced where answers are short and right or wrong."""
    space: dict[str, Any] = field(default_factory=dict)
    """Choices in place of the usual ones, such as {positions: [l1, l7], r: [1, 2, 4], learning_rate: [1e-4, 1e-2]}."""
    gates: bool = False
    """One training with learned gates first: the layers that it leaves are tried too, and first."""
    sampler: str = "tpe"
    """`tpe` or `random`."""
    finalists: int = 3
    """So many of the best are trained again; 0: none."""
    seeds: list[int] = field(default_factory=lambda: [42, 43, 44])
    """Of the finalists; trials have the first."""
    seed: int = 0
    """Of the rows that are drawn, and of the sampler."""
    dtype: str = "float32"
    """Of the base model."""
    eval_batch_size: int = 16
    reuse_limit_gb: float | None = None
    """The most memory that what trials share may take; by default half of what is free."""

    def __post_init__(self) -> None:
        Budget.of(self.budget)
        self.epochs = float(self.epochs) if type(self.epochs) is int else self.epochs
        for name, valid in (("scoring", SCORINGS), ("sampler", SAMPLERS)):
            if getattr(self, name) not in valid:
                value = getattr(self, name)
                raise ReftuneError(f"{name}={value!r} is not valid; use one of {', '.join(map(repr, valid))}")
        if isinstance(self.epochs, bool) or not isinstance(self.epochs, (int, float)) or self.epochs <= 0:
            raise ReftuneError(f"epochs={self.epochs!r} is not valid; use a number above 0")
        for name in ("batch_size", "eval_batch_size", "max_length", "train_rows", "held_out"):
            value = getattr(self, name)
            optional = name not in ("batch_size", "eval_batch_size")
            whole = isinstance(value, int) and not isinstance(value, bool) and value > 0
            if not (whole or (optional and value is None)):
                raise ReftuneError(f"{name}={value!r} is not valid; use a whole number above 0")
        if type(self.finalists) is not int or self.finalists < 0:
            raise ReftuneError(f"finalists={self.finalists!r} is not valid; use a whole number from 0")
        if not isinstance(self.gates, bool):
            raise ReftuneError(f"gates={self.gates!r} is not valid; use true or false")
        check_seeds(self.seeds)
        self.parsed_space()
        self.parsed_task()

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> SearchConfig:
        """From the content of a YAML file.

        Raises:
            ReftuneError: a key that is unknown or missing, or a value that is not valid.
        """
        return cls(**given_of("the search", cls, values, needed=("model", "task")))

    def parsed_task(self) -> Task:
        """The one task.

        Raises:
            ReftuneError: there are several, or none.
        """
        found = tasks_of(self.task)
        if len(found) != 1:
            names = ", ".join(task.name for task in found)
            raise ReftuneError(f"a search is of one task; {self.task!r} are {len(found)} ({names})")
        return found[0]

    def parsed_space(self) -> Space:
        """What is tried."""
        return Space.of(keys_and_values("space", self.space))

    @property
    def trial_settings(self) -> dict[str, Any]:
        """All that a trial's score depends on beside its choices, as JSON can hold it."""
        left_out = {
            "title",
            "budget",
            "gates",
            "space",
            "sampler",
            "finalists",
            "seeds",
            "seed",
            "eval_batch_size",
            "task",
        }
        kept = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in left_out | {"reuse_limit_gb"}}
        return {**kept, "task": self.parsed_task().called, "seed": self.seeds[0], "rows_seed": self.seed}

    @property
    def key(self) -> str:
        return key_of(self.trial_settings)
