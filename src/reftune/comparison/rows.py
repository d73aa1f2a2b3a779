"""The rows that a run is trained on and scored on.

Must not know: models, training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ReftuneError
from ..evaluation.data import sample, task_rows
from ..evaluation.own import task_of
from ..evaluation.tasks.base import Row
from ..files import key_of, read_json
from .methods import METHODS

__all__ = ["ROW_SETTINGS", "RunRows", "refuse_others", "rows_of_run"]

HELD_OUT = 500
ROW_SETTINGS = ("tasks", "train_rows", "test_rows", "data_seed", "held_out")
"""Settings of a run that choose its rows, beside whether its method trains."""

OTHERS = {
    "rows": "on other rows than the files or the Hub give now",
    "model_files": "of a model that was in the same folder before",
}


@dataclass(frozen=True)
class RunRows:
    """Of each task by its name."""

    train: dict[str, list[Row]]
    test: dict[str, list[Row]]

    @property
    def key(self) -> str:
        """The same for the same rows, wherever they came from."""
        return key_of([self.train, self.test])


def rows_of_run(settings: Mapping[str, Any], data_dir: str | None) -> RunRows:
    """The rows to train on and the rows to score, by the settings of a run.

    Where they are held out of the training rows, those to score are drawn first: they are the same however many are
    trained on.

    Raises:
        ReftuneError: none of the tasks has rows to train on.
        DataError: a file is missing.
    """
    tasks = [task_of(entry) for entry in settings["tasks"]]
    train: dict[str, list[Row]] = {}
    test: dict[str, list[Row]] = {}
    wanted, tested, seed = settings["train_rows"], settings["test_rows"], settings["data_seed"]
    method_trains = METHODS[settings["method"]].trains
    if method_trains and not any("train" in task.sources for task in tasks):
        own = any(task.entry is not None for task in tasks)
        how = (
            ": give train: FILE in the configuration (--train FILE), or hold a part back by --split 0.2" if own else ""
        )
        raise ReftuneError(f"{', '.join(task.title for task in tasks)}: there are no rows to train on{how}")
    for task in tasks:
        # a set without rows to train on is scored beside others that have some
        trains = method_trains and "train" in task.sources
        rows = task_rows(task, "train", data_dir=data_dir) if trains or settings["held_out"] else []
        if settings["held_out"]:
            test[task.name] = sample(rows, tested or HELD_OUT, seed=seed + 1)
            taken = {row["id"] for row in test[task.name]}
            rows = [row for row in rows if row["id"] not in taken]
        else:
            test[task.name] = task_rows(task, "test", data_dir=data_dir, limit=tested, seed=seed)
        if trains:
            train[task.name] = rows if wanted is None else sample(rows, wanted, seed=seed)
    return RunRows(train, test)


def refuse_others(folder: Path, made_from: Mapping[str, Any]) -> None:
    """Make sure that what a run's folder holds was made from these `rows` (the key of `RunRows`) and `model_files`.

    Raises:
        ReftuneError: it was not.
    """
    for file in (folder / "result.json", folder / "fit.json"):
        found = read_json(file) if file.is_file() else {}
        for name, what in OTHERS.items():
            # those that older versions wrote do not tell
            if found.get(name, made_from[name]) != made_from[name]:
                raise ReftuneError(
                    f"{str(folder)!r} holds a run {what}; use another --output, or delete it to do it again"
                )
