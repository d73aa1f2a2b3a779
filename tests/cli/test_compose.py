"""`reftune compose`: from files to a table; and `--subspaces` of what it made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.analysis.test_compose import FIRST, SECOND, saved
from tests.cli.conftest import Command, assert_user_error


@pytest.mark.slow
def test_from_files_to_a_table(reftune: Command, base: Path, tmp_path: Path) -> None:
    first, second = saved(tmp_path / "loud.jsonl", FIRST), saved(tmp_path / "brief.jsonl", SECOND)
    output = tmp_path / "both"
    common = ("compose", "--model", base, "--first", first, "--second", second, "--output", output, "--epochs", 1)
    done = reftune(*common, "--test", 2, "--max-new-tokens", 3, "--json")
    assert done.code == 0, done.err
    assert "loud: 8 rows, scored by capitals (guessed" in done.err and "brief: 10 rows, scored by words:1-3" in done.err
    assert [case["case"] for case in done.json["cases"]] == ["none", "first", "second", "both"]
    assert done.json["prompts"] == 2 and done.json["verdict"].startswith("loud ")
    assert json.loads((output / "composition.json").read_text()) == done.json
    again = reftune(*common, "--test", 2)
    assert again.code == 1 and "holds a run already" in again.err and "--overwrite" in again.err
    asked = tmp_path / "asked.txt"
    asked.write_text("w1 w2\nw3\n")
    shown = reftune(*common, "--prompts", asked, "--max-new-tokens", 3, "--overwrite")
    assert shown.code == 0, shown.err
    assert "both at once" in shown.out and "Report: " in shown.out and "--subspaces 0,1" in shown.out
    answers = json.loads((output / "composition.json").read_text())["examples"]
    generate = ("generate", output, "--file", asked, "--max-new-tokens", 3, "--json")
    for parts, case in (("none", "none"), ("0", "first"), ("0,1", "both")):
        told = reftune(*generate, "--subspaces", parts)
        assert [one["output"] for one in told.json["outputs"]] == [one[case] for one in answers]
    assert_user_error(reftune(*generate, "--subspaces", "0,2"), "'0,2'", "0,1")


def test_what_is_wrong_is_told_before_a_model_is_loaded(reftune: Command, tmp_path: Path, adapter: Path) -> None:
    first = saved(tmp_path / "loud.jsonl", FIRST)
    common = ("compose", "--model", "none", "--output", tmp_path / "both", "--first", first)
    assert_user_error(reftune(*common, "--second", tmp_path / "missing.jsonl"), "missing.jsonl", "no such file")
    assert_user_error(reftune(*common, "--second", first, "--first-rule", "loud"), "'loud'", "capitals")
    assert_user_error(reftune(*common, "--second", first, "--test", 2), "one rule", "'capitals'")
    assert_user_error(reftune(*common, "--second", first, "--test", 2, "--rank", 3), "rank 3", "even")
    assert_user_error(reftune(*common, "--second", first, "--test", 8), "held back")
    assert not (tmp_path / "both").exists()
    assert_user_error(reftune("generate", adapter, "--prompt", "w1", "--subspaces", "0"), "has no subspaces")
