"""`PromptStyle`: a bare question is put as the training prompts were.

Must not know: models.
"""

from __future__ import annotations

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
        ([{"prompt": "a", "completion": "b"}, {"instruction": "a", "output": "b"}], None),
    ],
)
def test_style_of_records(records: list[dict[str, Any]], expected: PromptStyle | None) -> None:
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


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "Expecting value"),
        ("{", "Expecting property name"),
        ("[]", "not an object"),
        ("5", "not an object"),
        ('{"system": 5}', "'style' is missing"),
        ('{"style": "song"}', "style='song'.*messages, instruction, prompt"),
        ('{"style": ["prompt"]}', "style=.*messages, instruction, prompt"),
        ('{"style": null}', "style=None"),
        ('{"style": "messages", "system": 5}', "system=5 .*a text"),
        ('{"style": "messages", "system": ["be kind"]}', "system=.*a text"),
        ('{"style": "messages", "system": {"role": "system"}}', "system=.*a text"),
        ('{"style": "messages", "system": "\\ud83d"}', "half a surrogate pair"),
        ('{"style": "prompt", "system": "be kind"}', "style='messages'"),
        ('{"style": "prompt", "mood": "good"}', "unknown fields 'mood'"),
        ('{"style": "prompt", "style": "messages"}', "'style' is there twice"),
        ("[" * 60_000, "nested too deeply"),
        ("9" * 5_000, "more digits"),
        (" " * 100_000, "more than 65536 bytes"),
    ],
)
def test_an_unusable_file_is_told_with_its_field(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / STYLE_FILE).write_text(content)
    with pytest.raises(DataError, match=f"(?s){STYLE_FILE}.*{told}"):
        PromptStyle.read(tmp_path)


def test_what_is_no_file_of_utf8_is_told_too(tmp_path: Path) -> None:
    (tmp_path / STYLE_FILE).write_bytes(b'{"style": "\xff"}')
    with pytest.raises(DataError, match=f"{STYLE_FILE}.*utf-8"):
        PromptStyle.read(tmp_path)
    (tmp_path / STYLE_FILE).unlink()
    (tmp_path / STYLE_FILE).symlink_to("nowhere")
    with pytest.raises(DataError, match=f"{STYLE_FILE}.*not a file"):
        PromptStyle.read(tmp_path)
    (tmp_path / STYLE_FILE).unlink()
    (tmp_path / STYLE_FILE).mkdir()
    with pytest.raises(DataError, match=f"{STYLE_FILE}.*not a file"):
        PromptStyle.read(tmp_path)


def test_a_byte_order_mark_is_harmless(tmp_path: Path) -> None:
    (tmp_path / STYLE_FILE).write_text('{"style": "prompt"}', encoding="utf-8-sig")
    assert PromptStyle.read(tmp_path) == PromptStyle("prompt")


def test_a_chat_gets_the_system_turn_of_training() -> None:
    style = PromptStyle("messages", "be kind")
    assert style.conversation([USER]) == {"messages": [SYSTEM, USER]}
    own = {"role": "system", "content": "be rude"}
    assert style.conversation([own, USER]) == {"messages": [own, USER]}
    assert PromptStyle("prompt").conversation([USER]) == {"prompt": "hello"}
    with pytest.raises(DataError, match="has no turns"):
        PromptStyle("instruction").conversation([USER, ANSWER, USER])


def test_unknown_style_names_the_valid_ones() -> None:
    with pytest.raises(DataError, match=r"'song'.*messages, instruction, prompt"):
        PromptStyle("song")
