"""`PromptStyle`: a bare question is put as the training prompts were.

Must not know: models.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from reftune.data.style import STYLE_FILE, PromptStyle
from reftune.errors import DataError

USER = {"role": "user", "content": "hello"}
ANSWER = {"role": "assistant", "content": "hi"}
SYSTEM = {"role": "system", "content": "be kind"}


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([{"prompt": "a", "completion": "b"}], PromptStyle("prompt")),
        ([{"instruction": "a", "input": "", "output": "b"}], PromptStyle("instruction")),
        ([{"messages": [USER, ANSWER]}], PromptStyle("messages")),
        ([{"messages": [SYSTEM, USER, ANSWER]}] * 2, PromptStyle("messages", "be kind")),
        ([{"messages": [SYSTEM, USER, ANSWER]}, {"messages": [USER, ANSWER]}], PromptStyle("messages")),
        ([{"prompt": [SYSTEM, USER], "completion": [ANSWER]}], PromptStyle("messages", "be kind")),
        ([{"prompt": "a", "completion": "b"}, {"instruction": "a", "output": "b"}], PromptStyle("messages")),
    ],
)
def test_style_of_records(records: list[dict[str, Any]], expected: PromptStyle) -> None:
    assert PromptStyle.of_records(records) == expected


@pytest.mark.parametrize(
    ("style", "record"),
    [
        (PromptStyle("prompt"), {"prompt": "x"}),
        (PromptStyle("instruction"), {"instruction": "x"}),
        (PromptStyle("messages"), {"messages": [{"role": "user", "content": "x"}]}),
        (PromptStyle("messages", "be kind"), {"messages": [SYSTEM, {"role": "user", "content": "x"}]}),
    ],
)
def test_record_of_a_text(style: PromptStyle, record: dict[str, Any]) -> None:
    assert style.record("x") == record


def test_round_trip_through_a_folder(tmp_path: Path) -> None:
    assert PromptStyle.read(tmp_path) is None
    for style in (PromptStyle("messages", "sei gütig"), PromptStyle("prompt")):
        style.write(tmp_path)
        assert PromptStyle.read(tmp_path) == style
    assert [path.name for path in tmp_path.iterdir()] == [STYLE_FILE]


@pytest.mark.parametrize("content", ["{", "[]", '{"style": "song"}', json.dumps({"style": "prompt", "mood": "good"})])
def test_an_unreadable_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / STYLE_FILE).write_text(content)
    with pytest.raises(DataError, match=STYLE_FILE):
        PromptStyle.read(tmp_path)


def test_unknown_style_names_the_valid_ones() -> None:
    with pytest.raises(DataError, match=r"'song'.*messages, instruction, prompt"):
        PromptStyle("song")
