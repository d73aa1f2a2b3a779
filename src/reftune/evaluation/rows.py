"""The rows that a run is trained on and scored on.

Must not know: models, training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import ReftuneError
from .data import sample, task_rows
from .methods import METHODS
from .tasks.base import Row, Task

__all__ = ["rows_of_run"]

HELD_OUT = 500


def rows_of_run(
    tasks: Sequence[Task], settings: dict[str, Any], data_dir: str | None
) -> tuple[dict[str, list[Row]], dict[str, list[Row]]]:
    """(rows to train on, rows to score) of each task, by the settings of a run.

    Where they are held out of the training rows, those to score are drawn first: they are the same however many are
    trained on.

    Raises:
        ReftuneError: none of the tasks has rows to train on.
        DataError: a file is missing.
    """
    train: dict[str, list[Row]] = {}
    test: dict[str, list[Row]] = {}
    wanted, tested, seed = settings["train_rows"], settings["test_rows"], settings["data_seed"]
    method_trains = METHODS[settings["method"]].trains
    if method_trains and not any("train" in task.sources for task in tasks):
        raise ReftuneError(f"{', '.join(task.name for task in tasks)}: there are no rows to train on")
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
    return train, test
