"""What `reftune train` tells of evaluation data: scores of adapter and base model, and some of their answers.

Must not know: verbs.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..errors import ReftuneError
from ..reporting.numbers import p_value
from .output import bar, say

if TYPE_CHECKING:
    from ..evaluation.own import OwnEntry
    from ..evaluation.own.beside import Beside
    from ..evaluation.tasks.base import Task
    from ..training import RunConfig, RunResult

__all__ = ["held_back", "print_beside", "score_beside", "scored_task"]

LONGEST_TEXT = 300
FOLDER = "eval"


def held_back(values: dict[str, Any], split: float | None) -> OwnEntry | None:
    """Make two parts of `data` in the settings of a run, by `split` there or as given: data and evaluation data.

    Raises:
        ReftuneError: the data is no file, there is evaluation data already, or one of the parts is empty.
    """
    told = values.pop("split", None)
    split = told if split is None else split
    if split is None:
        return None
    from ..evaluation.own import OwnEntry
    from ..evaluation.own.rows import part, read_own

    data = values.get("data")
    if values.get("eval_data") is not None:
        raise ReftuneError("give eval_data or split, not both: a split holds a part of the data back as eval_data")
    if not isinstance(data, str) or not Path(data).is_file():
        raise ReftuneError(f"split is for a file of records, and data={data!r:.60} is none")
    entry = OwnEntry(data, split=split)
    train, test = part(read_own(data, trains=True), split, data)
    values["data"], values["eval_data"] = ([row.record for row in rows] for rows in (train, test))
    return entry


def scored_task(console: Console, run: RunConfig, entry: OwnEntry | None = None) -> Task | None:
    """The evaluation data as a task, and what is to be known of it; None, and why, where it cannot be scored.

    `entry` is the file and its split, where a part of it was held back.
    """
    from ..evaluation.own import OwnEntry, own_task
    from .evaluate import tell

    file, train = run.eval_data if entry is None else entry.file, run.data
    if not isinstance(file, str) or not Path(file).is_file():
        return None
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        say(console, f"{file} is not scored by several processes, only its loss; reftune eval scores it afterwards")
        return None
    try:
        # rows to train on tell duplicates, and labels that rows to score lack
        task = own_task(entry or OwnEntry(file, train if isinstance(train, str) and Path(train).is_file() else None))
    except ReftuneError as error:
        say(console, f"only the loss on {file} is told, and no score: {error}")
        return None
    tell(console, [task])
    return task


def score_beside(console: Console, result: RunResult, task: Task, *, rows: int, run: RunConfig) -> Beside:
    """Answers of the adapter and its base model to at most so many rows."""
    from ..evaluation.data import task_rows
    from ..evaluation.own.beside import beside_base

    chosen = task_rows(task, "test", limit=rows)
    with bar(console, f"answers to {task.title}", 2 * len(chosen)) as done:
        return beside_base(
            result.model, result.tokenizer, task, chosen, folder=Path(run.output) / FOLDER, progress=done
        )


def print_beside(console: Console, beside: Beside, result: RunResult, task: Any) -> None:
    """Scores, whether they differ by more than chance, what is told of labels, and samples."""
    from .evaluate import interval_of, print_details, tell_unreadable

    console.print()
    table = Table(task.title, "rows", "score", "95 % interval", "no answer", "metric", box=None)
    for name, found in (("base model", beside.base), ("adapter", beside.adapter)):
        score = "–" if found.score is None else f"{100 * found.score:.1f}"
        table.add_row(name, f"{found.n:,}", score, interval_of(found), f"{found.unreadable:,}", found.metric)
    if task.chance is not None:
        table.add_row("most frequent label", "", f"{100 * task.chance:.1f}")
    console.print(table)
    tell_unreadable(console, [beside.base, beside.adapter])
    if beside.test is not None:
        say(console, told(beside))
    if result.best_epoch is not None:
        say(
            console,
            f"Epoch {result.best_epoch:g} was kept for its loss on these rows: on others the score may be lower.",
        )
    print_details(console, [beside.adapter])
    console.print()
    samples = Table(title=f"{len(beside.samples)} of the rows", show_lines=True)
    for column in ("prompt", "wanted", "base model", "adapter"):
        samples.add_column(column, ratio=1, overflow="fold")
    for sample in beside.samples:
        samples.add_row(*(Text(shortened(sample[name])) for name in ("prompt", "wanted", "base", "adapter")))
    console.print(samples)
    say(console, f"Answers: {result.adapter_path / FOLDER}")


def told(beside: Beside) -> str:
    """The paired test in a sentence."""
    test = beside.test
    assert test is not None
    more = "is better than" if test.difference > 0 else "is worse than"
    verdict = f"the adapter {more} the base model" if test.told_apart else "chance alone may do that"
    if test.p is not None:
        return (
            f"{test.only_first} rows only the adapter has right, {test.only_second} only the base model "
            f"(McNemar's test: {p_value(test.p)}): {verdict}."
        )
    ends = f"{100 * test.low:+.1f} to {100 * test.high:+.1f}"
    return f"Difference {100 * test.difference:+.1f} points (95 % interval {ends}): {verdict}."


def shortened(text: str) -> str:
    """With its end, where what is asked stands."""
    text = text.strip()
    return text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT // 3]} … {text[-2 * LONGEST_TEXT // 3 :]}"
