"""Rows of a task from files and from the Hub, which is a local folder here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from reftune.errors import DataError
from reftune.evaluation.data import DATA_VARIABLE, sample, task_rows
from reftune.evaluation.tasks import TASKS
from reftune.evaluation.tasks.base import Hub, Row, Source
from tests.evaluation.tasks.rows import SMALL, write_rows

BOOLQ = TASKS["boolq"]
FILE = BOOLQ.sources["test"].file


def many(count: int) -> list[dict[str, str]]:
    return [{**SMALL[FILE][0], "instruction": f"question {n}"} for n in range(count)]


def test_from_a_file(tmp_path: Path) -> None:
    write_rows(tmp_path, {FILE: many(3)})
    rows = task_rows(BOOLQ, "test", data_dir=tmp_path)
    assert [row["instruction"] for row in rows] == ["question 0", "question 1", "question 2"]
    assert [row["id"] for row in rows] == [0, 1, 2]


def test_the_folder_that_the_environment_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(tmp_path / "named", {FILE: many(3)})
    write_rows(tmp_path / "given", {FILE: many(2)})
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path / "named"))
    assert len(task_rows(BOOLQ, "test")) == 3
    assert len(task_rows(BOOLQ, "test", data_dir=tmp_path / "given")) == 2


def test_a_limit_draws_by_seed_and_keeps_order_and_ids(tmp_path: Path) -> None:
    write_rows(tmp_path, {FILE: many(50)})
    rows = task_rows(BOOLQ, "test", data_dir=tmp_path, limit=10, seed=3)
    ids = [row["id"] for row in rows]
    assert ids == sorted(set(ids)) and len(ids) == 10
    assert all(row["instruction"] == f"question {row['id']}" for row in rows)
    assert ids != list(range(10)), "drawn, not the first ones: files may be sorted"
    assert ids == [row["id"] for row in task_rows(BOOLQ, "test", data_dir=tmp_path, limit=10, seed=3)]
    assert ids != [row["id"] for row in task_rows(BOOLQ, "test", data_dir=tmp_path, limit=10, seed=4)]


def test_a_limit_above_the_number_of_rows() -> None:
    assert sample([1, 2, 3], 5, seed=0) == [1, 2, 3]
    assert sample([], 5, seed=0) == []


def test_a_missing_file_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        task_rows(BOOLQ, "train", data_dir=tmp_path)
    message = str(error.value)
    for part in ("'boolq'", "commonsense/boolq.train.jsonl.gz", str(tmp_path), "google/boolq", "docs/evaluation.md"):
        assert part in message
    with pytest.raises(DataError, match=r"math/AddSub\.test\.jsonl\.gz") as error:
        task_rows(TASKS["AddSub"], "test", data_dir=tmp_path)
    assert "Hub" not in str(error.value), "it is not there, so the message must not send anyone to it"


def test_a_file_without_rows_is_named(tmp_path: Path) -> None:
    write_rows(tmp_path, {FILE: []})
    with pytest.raises(DataError, match=r"'boolq': .*boolq.test.jsonl.gz' has no rows"):
        task_rows(BOOLQ, "test", data_dir=tmp_path)


def test_a_split_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'SVAMP' has no train rows; it has test"):
        task_rows(TASKS["SVAMP"], "train", data_dir=tmp_path)


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    write_rows(tmp_path, {FILE: many(1)})
    (tmp_path / FILE).write_bytes(b"no gzip")
    with pytest.raises(DataError, match=r"boolq\.test\.jsonl\.gz"):
        task_rows(BOOLQ, "test", data_dir=tmp_path)


def double(row: Row) -> Row:
    return {**row, "answer": row["answer"] * 2}


@pytest.fixture
def offline_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that `datasets` loads as it loads a repository of the Hub."""
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "hub"
    folder.mkdir()
    lines = [json.dumps({"instruction": f"question {n}", "answer": f"a{n}"}) for n in range(4)]
    (folder / "validation.jsonl").write_text("\n".join(lines))
    return folder


def test_from_the_hub(offline_hub: Path) -> None:
    source = Source("commonsense/none.jsonl.gz", Hub(str(offline_hub), None, "validation", double))
    rows = task_rows(replace(BOOLQ, sources={"test": source}), "test")
    assert [(row["id"], row["answer"]) for row in rows] == [(0, "a0a0"), (1, "a1a1"), (2, "a2a2"), (3, "a3a3")]


def test_a_split_that_the_hub_lacks(offline_hub: Path) -> None:
    source = Source("commonsense/none.jsonl.gz", Hub(str(offline_hub), None, "test"))
    with pytest.raises(DataError, match=r"the Hub gave no 'test' of .*commonsense/none.jsonl.gz.*--data-dir"):
        task_rows(replace(BOOLQ, sources={"test": source}), "test")


def test_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tests run offline, so that this is what a machine without a network says."""
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(DataError, match=r"the Hub gave no 'validation' of 'google/boolq'.*--data-dir or REFTUNE_DATA"):
        task_rows(BOOLQ, "test")


def test_neither_folder_nor_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    with pytest.raises(DataError, match=r"'AddSub' is not on the Hub.*math/AddSub.test.jsonl.gz.*--data-dir"):
        task_rows(TASKS["AddSub"], "test")
