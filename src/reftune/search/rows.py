"""The rows that trials are trained on, those that choose, and those that tell of the best: all of them training rows.

Must not know: models, training.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from ..errors import DataError
from ..evaluation.data import sample, task_rows
from ..evaluation.tasks.base import Row, Task
from ..files import key_of

__all__ = ["SearchRows", "rows_of_search", "training_rows"]

FEWEST = 20
SHARE, MOST = 4, 300
# With fewer rows than that the best are told by the rows that chose them.
ENOUGH = 100


@dataclass(frozen=True)
class SearchRows:
    """No prompt is in two of these, unless `tells` are `chooses`."""

    train: list[Row]
    chooses: list[Row]
    tells: list[Row]

    @property
    def apart(self) -> bool:
        """Whether the best are told by rows that did not choose them."""
        return self.tells is not self.chooses

    @property
    def key(self) -> str:
        return key_of([self.train, self.chooses, self.tells])


def training_rows(task: Task, data_dir: str | None) -> list[Row]:
    """All rows to train on; of a file of one's own without a word of what is scored, its rows.

    Raises:
        DataError: there are none, or the file is missing.
    """
    if "train" not in task.sources and task.entry is not None and not {"train", "split"} & set(task.entry):
        return task_rows(task, "test")
    return task_rows(task, "train", data_dir=data_dir)


def rows_of_search(
    task: Task, *, held_out: int | None, train_rows: int | None, seed: int, data_dir: str | None
) -> SearchRows:
    """Drawn by `seed`.  Rows whose prompt is held out are not trained on.

    Raises:
        DataError: as `training_rows`; or there are too few rows to choose by.
    """
    rows = training_rows(task, data_dir)
    prompts = {row["id"]: _prompt(task, row) for row in rows}
    different = len(set(prompts.values()))
    if different < FEWEST:
        raise DataError(
            f"{task.title}: {different} rows with different prompts to train on are too few for a search, which holds "
            f"a part of them back to choose by; it needs {FEWEST}. With so few, train with the defaults "
            "(reftune train) or write more rows"
        )
    wanted = held_out if held_out is not None else min(MOST, different // SHARE)
    several = 2 if different >= ENOUGH else 1
    if wanted * several > different // 2:
        raise DataError(
            f"held_out={wanted} of {different:,} rows with different prompts leaves less than half of them to train "
            f"on; use at most {different // (2 * several)}"
        )
    # one row a prompt, so that no prompt weighs more than another
    first = list({prompts[row["id"]]: row for row in reversed(rows)}.values())[::-1]
    chooses = sample(first, wanted, seed=seed + 1)
    taken = {prompts[row["id"]] for row in chooses}
    tells = chooses
    if several == 2:
        tells = sample([row for row in first if prompts[row["id"]] not in taken], wanted, seed=seed + 2)
        taken |= {prompts[row["id"]] for row in tells}
    train = [row for row in rows if prompts[row["id"]] not in taken]
    return SearchRows(train if train_rows is None else sample(train, train_rows, seed=seed), chooses, tells)


def _prompt(task: Task, row: Row) -> str:
    text = json.dumps(task.prompt(row), sort_keys=True, ensure_ascii=False, default=str)
    return " ".join(text.split())


def records_of(task: Task, rows: list[Row]) -> list[dict[str, Any]]:
    """Rows as records to train on."""
    return [task.record(row) for row in rows]
