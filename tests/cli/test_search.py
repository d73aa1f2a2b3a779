"""`reftune search`, and `reftune train --from-search`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Command, assert_user_error
from tests.search.searching import folder_with_rows


@pytest.mark.slow
def test_the_command_and_train_from_search(tmp_path: Path, reftune: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder_with_rows(tmp_path))
    data = ["--model", "base", "--task", "train.jsonl"]
    given = [*data, "--epochs", "1", "--batch-size", 8, "--finalists", 1, "--seeds", "1,2"]
    done = reftune("search", *given, "--budget", "3 trials", "--json")
    assert done.code == 0, done.err
    assert len(done.json["trials"]) == 3 and len(done.json["finals"][0]["runs"]) == 2
    assert " again, seed 2" in done.err
    page = (tmp_path / "search" / "report.md").read_text(encoding="utf-8")
    assert "reftune train --from-search search --pick best" in page and "trained again with 2 seeds" in page
    number = done.json["finals"][0]["number"]
    trained = reftune("train", "--from-search", "search", "--pick", number, "--epochs", 2, "--output", "mine", "--json")
    assert trained.code == 0, trained.err
    chosen = next(entry for entry in done.json["trials"] if entry["number"] == number)
    assert trained.json["trainable_parameters"] == chosen["parameters"] and trained.json["steps"] == 12
    assert_user_error(reftune("search", *given, "--budget", "0m"), "allows no trial")
    other = reftune("search", *given, "--epochs", 3)
    # what is to be known of the rows stands before it
    assert other.code == 1 and "epochs=1.0, not 3.0" in other.err.splitlines()[-1]
    assert_user_error(reftune("train", "--from-search", "mine", "--output", "other"), "no search")
    assert reftune("search", "--report-only").code == 0
