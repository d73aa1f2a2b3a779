"""Alpaca-Eval's format, and which answers belong together."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from reftune.errors import DataError
from reftune.evaluation.judge.pairs import Answers, Pair, pair_up, read_answers, write_alpaca_eval

EXAMPLE = {"id": 0, "prompt": "…", "instruction": "Name a fish.", "dataset": "koala", "output": "  Cod.\n"}


def lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_the_file_is_what_alpaca_eval_reads(tmp_path: Path) -> None:
    bare = {"id": 1, "instruction": "Näme \u2028 two.", "output": ""}
    write_alpaca_eval([EXAMPLE, bare], tmp_path / "new" / "outputs.json", generator="my model")
    assert json.loads((tmp_path / "new" / "outputs.json").read_text(encoding="utf-8")) == [
        {"instruction": "Name a fish.", "output": "  Cod.\n", "generator": "my model", "dataset": "koala"},
        {"instruction": "Näme \u2028 two.", "output": "", "generator": "my model", "dataset": ""},
    ]


def test_what_is_written_is_read_again_as_are_lines_and_packed_lines(tmp_path: Path) -> None:
    write_alpaca_eval([EXAMPLE], tmp_path / "outputs.json", generator="my model")
    assert read_answers(tmp_path / "outputs.json") == Answers("my model", {"Name a fish.": "  Cod.\n"})
    as_lines = lines(tmp_path / "run.test.jsonl", [EXAMPLE])
    assert read_answers(as_lines) == Answers("run", {"Name a fish.": "  Cod.\n"})
    packed = tmp_path / "packed.jsonl.gz"
    packed.write_bytes(gzip.compress(as_lines.read_bytes()))
    assert read_answers(packed) == Answers("packed", {"Name a fish.": "  Cod.\n"})


def test_the_name_is_the_generator_only_if_it_is_one(tmp_path: Path) -> None:
    rows = [{"instruction": str(i), "output": "x", "generator": name} for i, name in enumerate("ab")]
    assert read_answers(lines(tmp_path / "mixed.jsonl", rows)).name == "mixed"


def test_an_input_belongs_to_the_instruction(tmp_path: Path) -> None:
    rows = [{"instruction": "Translate.", "input": text, "output": text.upper()} for text in ("one", "two", "")]
    found = read_answers(lines(tmp_path / "a.jsonl", rows))
    assert found.outputs == {"Translate.\n\none": "ONE", "Translate.\n\ntwo": "TWO", "Translate.": ""}


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ({"instruction": "a"}, ("line 2", "'output'", "only 'instruction'")),
        ({"instruction": "a", "output": None}, ("line 2", "'output'", "None")),
        ({"prompt": "a", "output": "b"}, ("line 2", "'instruction'", "only 'prompt', 'output'")),
        (["a"], ("line 2", "list")),
        ({"instruction": "fine", "output": "again"}, ("1 instructions occur more than once", "'fine'")),
    ],
)
def test_rows_that_cannot_be_paired(tmp_path: Path, row: Any, parts: tuple[str, ...]) -> None:
    file = lines(tmp_path / "a.jsonl", [{"instruction": "fine", "output": "fine"}, row])
    with pytest.raises(DataError) as caught:
        read_answers(file)
    assert all(part in str(caught.value) for part in (str(file), *parts)), caught.value


def test_no_rows(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(DataError, match="no rows"):
        read_answers(tmp_path / "a.json")


def test_what_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"outputs\.jsonl.*\.json"):
        write_alpaca_eval([EXAMPLE], tmp_path / "outputs.jsonl", generator="g")
    with pytest.raises(DataError, match=r"example 2.*'instruction'"):
        write_alpaca_eval([EXAMPLE, {"output": "x"}], tmp_path / "outputs.json", generator="g")
    assert list(tmp_path.iterdir()) == []


def test_pairs_are_by_instruction_in_the_order_of_the_model() -> None:
    model = Answers("m", {"b": "1", "only mine": "2", "a": "3"})
    reference = Answers("r", {"a": "4", "b": "5", "only theirs": "6"})
    assert pair_up(model, reference) == ([Pair("b", "1", "5"), Pair("a", "3", "4")], 1)
    with pytest.raises(DataError, match=r"'only mine'.*'only theirs'"):
        pair_up(Answers("m", {"only mine": "2"}), Answers("r", {"only theirs": "6"}))
