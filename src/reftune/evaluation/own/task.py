"""A file of records as a `Task`, and the tasks of a list of names and files.

Must not know: models, training.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...errors import DataError, ReftuneError
from ..tasks import parse_tasks
from ..tasks.base import Given, Task
from .entry import OwnEntry, is_file
from .guess import guess
from .readings import reading_of
from .rows import OwnRow, compared, inside, only_tested, part, read_own

__all__ = ["own_task", "task_of", "tasks_of"]

# Tokens of an answer: as many as the longest right one has bytes is enough in any language; of long texts a token is
# some letters.
FEWEST_TOKENS, ALL_BYTES, MOST_TOKENS = 16, 64, 1024


def tasks_of(entries: Any, **common: Any) -> list[Task]:
    """Tasks of names, groups and files: a text with commas, or a list, which may hold keys and values (`OwnEntry`).

    `common` are keys for every file that does not give them itself.

    Raises:
        ReftuneError: an unknown name, keys that are not valid, or keys for files where there is none.
        DataError: a file that is not usable.
    """
    found: list[Task] = []
    files = 0
    for entry in _listed(entries):
        if isinstance(entry, str) and not is_file(entry):
            found += parse_tasks([entry])
            continue
        files += 1
        values = OwnEntry.of(entry).values()
        # rows to train on by a file or by a split: what an entry says itself goes before what is said of all
        said = {"train", "split"} & set(values)
        found.append(own_task(OwnEntry.of({**common, **dict.fromkeys({"train", "split"} if said else ()), **values})))
    used = {key: value for key, value in common.items() if value is not None}
    if used and not files:
        raise ReftuneError(f"{', '.join(f'--{key}' for key in used)} is for files of your own, and the tasks name none")
    unique = {task.name: task for task in found}
    for task in found:
        if unique[task.name].entry != task.entry:
            raise ReftuneError(f"two tasks are called {task.name!r}; give one another name, as in name: {task.name}-2")
    return list(unique.values()) if unique else parse_tasks([])


def _listed(entries: Any) -> list[Any]:
    if isinstance(entries, str):
        # a file may have a comma in its name
        return [entries] if Path(entries).is_file() else [part for part in map(str.strip, entries.split(",")) if part]
    if isinstance(entries, Mapping):
        return [entries]
    if not isinstance(entries, Iterable):
        raise ReftuneError(f"tasks={entries!r} is not valid; give names, files, or keys and values with file")
    return [entry.strip() if isinstance(entry, str) else entry for entry in entries if entry != ""]


def task_of(value: Any) -> Task:
    """The task of an entry as a run's settings have it: a name, or the values of an `OwnEntry`."""
    return own_task(OwnEntry.of(value)) if isinstance(value, Mapping) else parse_tasks([value])[0]


def own_task(entry: OwnEntry) -> Task:
    """The task of a file, its rows read and looked at.

    Raises:
        DataError: the file is not usable, or no score of it could tell anything.
        ReftuneError: the answers are not of the kind that the score is for.
    """
    return _own_task(entry, tuple(_state(name) for name in (entry.file, entry.train) if name is not None))


def _state(name: str) -> tuple[int, int] | None:
    """What changes when a file does."""
    try:
        found = os.stat(name)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


@lru_cache(maxsize=16)
def _own_task(entry: OwnEntry, state: tuple[Any, ...]) -> Task:
    train, test, notes = _rows_of(entry)
    answers = [row.answer for row in (*train, *test)]
    score, told = (entry.score, "") if entry.score is not None else guess(answers, _named(entry))
    reading = reading_of(score, answers)
    if told:
        notes.insert(0, f"{told} (--score chooses another way).")
    chance = None
    if score == "labels":
        learnt, tested = ([reading.reference(row.answer) for row in rows] for rows in (train, test))
        chance = max(Counter(tested).values()) / len(test)
        notes += only_tested(learnt, tested, entry.title) if train else []
    sources = {"test": Given([_as_row(row) for row in test])}
    if train:
        sources["train"] = Given([_as_row(row) for row in train])
    return Task(
        name=entry.task_name,
        title=entry.title,
        sources=sources,
        prompt=lambda row: row["asked"],
        completion=lambda row: row["answer"],
        reference=lambda row: reading.reference(row["answer"]),
        extract=reading.extract,
        matches=reading.matches,
        metric=reading.metric,
        numbers=reading.numbers,
        generation={"max_new_tokens": _tokens(answers)},
        chance=chance,
        details=reading.details,
        trains_on=lambda row: row["record"],
        entry=entry.values(),
        score_form=score,
        notes=tuple(notes),
    )


def _named(entry: OwnEntry) -> str:
    """All that answers are from."""
    return entry.title if entry.train is None else f"{entry.title} and {Path(entry.train).name}"


def _as_row(row: OwnRow) -> dict[str, Any]:
    return {"id": row.place, "record": row.record, "asked": row.asked, "answer": row.answer}


def _tokens(answers: Sequence[str]) -> int:
    longest = max(len(answer.encode()) for answer in answers)
    beyond = max(0, longest - ALL_BYTES)
    return min(MOST_TOKENS, max(FEWEST_TOKENS, longest - beyond // 2))


def _rows_of(entry: OwnEntry) -> tuple[list[OwnRow], list[OwnRow], list[str]]:
    """(to train on, to score, what is odd about them)"""
    name = entry.title
    if entry.split is not None:
        rows = read_own(entry.file, answer=entry.answer, trains=True)
        train, test = part(rows, entry.split, name)
        told = (
            f"{name}: {len(test):,} of {len(rows):,} rows are scored and not trained on, by the hash of their prompts."
        )
        return train, test, [told, *inside(test, name)]
    test = read_own(entry.file, answer=entry.answer)
    notes = inside(test, name)
    if entry.train is None:
        return [], test, notes
    if Path(entry.train).exists() and Path(entry.file).samefile(entry.train):
        raise DataError(
            f"{entry.file!r} is both what to train on and what to score: a score on rows that were learnt tells "
            "nothing; give another file, or this one alone with --split 0.2"
        )
    train = read_own(entry.train, answer=entry.answer, trains=True)
    return train, test, [*notes, *compared(train, test, (entry.train, entry.file))]
