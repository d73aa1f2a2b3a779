"""`reftune search`, and `reftune train --from-search`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Command, assert_user_error
from tests.search.searching import folder_with_rows


def test_the_command_and_train_from_search(tmp_path: Path, reftune: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder_with_rows(tmp_path))
    data = ["--model", "base", "--task", "train.jsonl"]
    given = [*data, "--epochs", 1, "--batch-size", 8, "--finalists", 1, "--seeds", "1,2"]
    done = reftune("search", *given, "--budget", "3 trials", "--json")
    assert done.code == 0, done.err
    assert len(done.json["trials"]) == 3 and len(done.json["finals"][0]["runs"]) == 2
    assert "trial 1 again, seed 2" in done.err.replace("trial 0", "trial 1").replace("trial 2", "trial 1")
    page = (tmp_path / "search" / "report.md").read_text(encoding="utf-8")
    assert "reftune train --from-search search --pick best" in page and "two seeds" not in page
    number = done.json["finals"][0]["number"]
    trained = reftune("train", "--from-search", "search", "--pick", number, "--epochs", 2, "--output", "mine", "--json")
    assert trained.code == 0, trained.err
    chosen = next(entry for entry in done.json["trials"] if entry["number"] == number)
    assert trained.json["trainable_parameters"] == chosen["parameters"] and trained.json["steps"] == 12
    assert_user_error(reftune("search", *given, "--budget", "0m"), "allows no trial")
    assert_user_error(reftune("search", *given, "--epochs", 3), "epochs=1", "--output")
    assert_user_error(reftune("train", "--from-search", "mine", "--output", "other"), "no search")
    assert reftune("search", "--report-only").code == 0
