"""`reftune split-turns` on a file."""

from __future__ import annotations

from pathlib import Path

from reftune.files import read_lines
from tests.cli.conftest import Command
from tests.data.test_turns import CHAT
from tests.training.text_models import write_jsonl


def test_a_row_for_each_answer(reftune: Command, tmp_path: Path) -> None:
    source, output = write_jsonl(tmp_path / "chats.jsonl", [CHAT, CHAT]), tmp_path / "turns.jsonl"
    found = reftune("split-turns", source, output, "--json")
    assert found.code == 0 and found.json == {"rows": 2, "answers": 6, "output": str(output)}
    assert [len(row["messages"]) for row in read_lines(output)] == [3, 5, 7] * 2
    again = reftune("split-turns", source, output)
    assert again.code == 1 and "is there already; use --overwrite" in again.err
    told = reftune("split-turns", source, output, "--overwrite")
    assert told.code == 0 and "2 rows have 6 answers, each a row of" in told.out


def test_a_row_that_cannot_be_used_is_named(reftune: Command, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "chats.jsonl", [CHAT, {"messages": []}])
    found = reftune("split-turns", source, tmp_path / "turns.jsonl")
    assert found.code == 1 and "line 2" in found.err and not (tmp_path / "turns.jsonl").exists()
