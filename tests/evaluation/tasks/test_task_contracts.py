"""What holds for all tasks and all their rows: a record to train on, a right answer that is read back, valid labels.

On a few rows by hand always; on the real files where they are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from reftune.data.kinds import check_record
from reftune.evaluation.data import task_rows
from reftune.evaluation.tasks import GROUPS, TASKS
from reftune.evaluation.tasks.base import Row, Task
from tests.evaluation.tasks.rows import SMALL, data_folder, write_rows

REAL = data_folder()
SPLITS = [(task, split) for task in TASKS.values() for split in task.sources]
IDS = [f"{task.name}-{split}" for task, split in SPLITS]
CHOICES = GROUPS["commonsense"]
# Their test files hold solutions that a model wrote, right or wrong (mawps has none at all).
WRITTEN_BY_A_MODEL = frozenset(GROUPS["math"]) - {"mawps"}


def check_rows(task: Task, split: str, rows: Sequence[Row]) -> None:
    assert len({row["id"] for row in rows}) == len(rows) > 0
    for row in rows:
        check_record(task.prompt(row), need_response=False)
        taught, reference = task.completion(row), task.reference(row)
        if not is_only_compared(task, split):
            check_record(task.record(row))
            assert valid(task, row, reference), row
        if not (split == "test" and task.name in WRITTEN_BY_A_MODEL):
            assert task.is_right(task.extract(taught), reference) or is_only_compared(task, split), row
        if task.metric is not None:
            assert task.is_right(reference, reference), row
            assert not task.is_right(None, reference), row
            task.pair(None, reference)
        if task.classes is not None:
            check_classes(task, row)


def is_only_compared(task: Task, split: str) -> bool:
    """Outputs of another model, some of them empty: nothing is trained on them."""
    return task.metric is None and split == "test"


def valid(task: Task, row: Row, reference: str) -> bool:
    if task.name in CHOICES:
        return reference in row["instruction"].rpartition("Answer format: ")[2].split("/")
    if task.name == "AQuA":
        return reference in set("ABCDE")
    if task.name in GROUPS["math"]:
        return re.fullmatch(r"-?\d+(\.\d+)?", reference) is not None
    if task.name == "stsb":
        return 0 <= float(reference) <= 5
    return bool(reference)


def check_classes(task: Task, row: Row) -> None:
    assert task.classes is not None
    first, second = task.classes.texts(row)
    assert first and second != ""
    label = task.classes.label(row)
    if task.classes.is_regression:
        assert label == float(task.reference(row))
    else:
        assert task.classes.names[int(label)] and label == int(label) >= 0


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_rows(folder, SMALL)
    return folder


@pytest.mark.parametrize(("task", "split"), SPLITS, ids=IDS)
def test_rows_by_hand(task: Task, split: str, small: Path) -> None:
    file = task.sources[split].file
    assert file in SMALL, f"write rows for {file} into tests/evaluation/tasks/rows.py"
    rows = task_rows(task, split, data_dir=small)
    assert len(rows) == len(SMALL[file]) * task.sources[split].copies
    check_rows(task, split, rows)


@pytest.mark.skipif(REAL is None, reason="needs the data folder (REFTUNE_DATA)")
@pytest.mark.parametrize(("task", "split"), SPLITS, ids=IDS)
def test_rows_of_the_data_folder(task: Task, split: str) -> None:
    if (task.name, split) == ("ultrafeedback", "train"):
        pytest.skip("the whole of UltraFeedback is not among the files")
    check_rows(task, split, task_rows(task, split, data_dir=REAL))


@pytest.mark.parametrize("name", GROUPS["math"])
def test_an_arithmetic_answer_written_out_is_right(name: str, small: Path) -> None:
    """What the test files' own solutions cannot show."""
    task = TASKS[name]
    (row,) = task_rows(task, "test", data_dir=small)
    reference = task.reference(row)
    assert task.is_right(task.extract(f"So the answer is {reference}."), reference)


@pytest.mark.parametrize("name", GROUPS["glue"])
def test_words_and_classes_say_the_same(name: str, small: Path) -> None:
    """Two rows have the same word exactly if they have the same class."""
    task = TASKS[name]
    assert task.classes is not None
    rows = task_rows(task, "train", data_dir=small)
    labels = [task.classes.label(row) for row in rows]
    assert len({task.reference(row) for row in rows}) == len(set(labels)) == len(rows)
    assert task.classes.is_regression or sorted(labels) == list(range(len(task.classes.names)))


@pytest.mark.parametrize(("task", "split"), SPLITS, ids=IDS)
def test_prompts_end_where_the_answer_is_to_begin(task: Task, split: str, small: Path) -> None:
    """Published prompts end with a line break; ours, whose answers bring their blank, with the colon."""
    for row in task_rows(task, split, data_dir=small):
        prompt, taught = task.prompt(row)["prompt"], task.completion(row)
        if task.name in GROUPS["glue"]:
            assert prompt.endswith("\nAnswer:")
            assert re.fullmatch(r" [a-z]+| \d\.\d", taught)
        elif task.name in (*CHOICES, *GROUPS["math"], "alpaca_eval", "ultrafeedback"):
            assert prompt.endswith("\n")
        else:
            assert prompt.endswith("->")
