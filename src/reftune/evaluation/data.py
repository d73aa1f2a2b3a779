"""Rows of a task: from a file of the data folder, else from the Hub.

Must not know: models, what the rows mean.
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

from ..data.records import load_datasets, read_rows
from ..errors import DataError
from .tasks.base import Given, Row, Source, Task

__all__ = ["DATA_VARIABLE", "sample", "task_rows"]

DATA_VARIABLE = "REFTUNE_DATA"


def task_rows(
    task: Task, split: str, *, data_dir: str | Path | None = None, limit: int | None = None, seed: int = 0
) -> list[Row]:
    """Rows of `train` or `test`, each with its place in the source as `id`.

    They come from `<data_dir>/<file of the task>` if a folder is given (or named by `REFTUNE_DATA`), else from the Hub.
    With `limit`, as many rows drawn by `seed`, in the order of the source: sources may be sorted.

    Raises:
        DataError: the task has no such split, the file is missing, or the Hub cannot be had.
    """
    source = task.sources.get(split)
    if source is None:
        valid = ", ".join(task.sources)
        raise DataError(f"the task {task.name!r} has no {split} rows; it has {valid}")
    if isinstance(source, Given):
        given = list(source.rows)
        return given if limit is None else sample(given, limit, seed=seed)
    folder = data_dir or os.environ.get(DATA_VARIABLE)
    found = _from_file(task, source, Path(folder)) if folder else _from_hub(task, source)
    rows: list[Row] = [{**row, "id": index} for index, row in enumerate(found * source.copies)]
    return rows if limit is None else sample(rows, limit, seed=seed)


def sample(rows: list[Any], count: int, *, seed: int) -> list[Any]:
    """`count` of the rows (or all, if there are fewer), in their order."""
    if count >= len(rows):
        return rows
    return [rows[i] for i in sorted(random.Random(seed).sample(range(len(rows)), count))]


def _from_file(task: Task, source: Source, folder: Path) -> list[Row]:
    path = folder / source.file
    if not path.is_file():
        hub = "" if source.hub is None else f", or leave the folder out to take {source.hub.name} from the Hub"
        raise DataError(
            f"the task {task.name!r} needs the file {source.file} in the data folder {str(folder)!r}, which lacks "
            f"it: put it there{hub} (docs/evaluation.md tells the files and their sources)"
        )
    found = list(read_rows(path).records)
    if not found:
        raise DataError(f"the task {task.name!r}: {str(path)!r} has no rows")
    return found


def _from_hub(task: Task, source: Source) -> list[Row]:
    if source.hub is None:
        raise DataError(
            f"the task {task.name!r} is not on the Hub: give the folder that holds {source.file} by --data-dir or "
            f"{DATA_VARIABLE}"
        )
    datasets = load_datasets()
    hub = source.hub
    try:
        rows = datasets.load_dataset(hub.name, hub.config, split=hub.split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"the task {task.name!r}: the Hub gave no {hub.split!r} of {hub.name!r} ({error}); or give the folder "
            f"that holds {source.file} by --data-dir or {DATA_VARIABLE}"
        ) from error
    return [hub.convert(row) for row in rows]
