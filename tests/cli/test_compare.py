"""`reftune compare` on files of records: how long it trains where nobody says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from reftune.cli.compare import budget_of
from reftune.data.passes import passes


@pytest.fixture
def tasks(tmp_path: Path) -> list[dict[str, Any]]:
    def written(name: str, count: int) -> str:
        lines = [json.dumps({"text": f"{name} {i}", "label": "ab"[i % 2]}) for i in range(count)]
        (tmp_path / name).write_text("\n".join(lines))
        return str(tmp_path / name)

    return [{"file": written("test.jsonl", 6), "train": written("train.jsonl", 20)}]


def test_few_rows_get_the_passes_that_train_would_make(tasks: list[dict[str, Any]]) -> None:
    console = Console(record=True, width=200)
    batch, epochs = passes(20)
    assert budget_of({"tasks": tasks}, console) == {"epochs": epochs, "batch_size": batch}
    assert f"{epochs} passes over 20 rows in batches of {batch}" in console.export_text()
    given = passes(20, batch=4)
    assert budget_of({"tasks": tasks, "batch_size": 4}, console) == {"epochs": given[1], "batch_size": 4}


@pytest.mark.parametrize("said", [{"epochs": 2}, {"seconds": 5}, {"tasks": "sst2"}])
def test_what_is_said_stands_and_named_tasks_are_asked_for(tasks: list[dict[str, Any]], said: dict[str, Any]) -> None:
    console = Console(record=True)
    assert budget_of({"tasks": tasks, **said}, console) == {}
    assert console.export_text() == ""
