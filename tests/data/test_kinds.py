"""What a record may look like, and what is said of one that may not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from reftune.data.kinds import COMPLETION, INSTRUCTION, MESSAGES, Kind, check_record
from reftune.data.records import read_records
from reftune.errors import DataError

USER = {"role": "user", "content": "hello"}
ANSWER = {"role": "assistant", "content": "yes"}


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        ({"prompt": "a", "completion": "b"}, COMPLETION),
        ({"prompt": [USER], "completion": [ANSWER]}, COMPLETION),
        ({"messages": [USER, ANSWER]}, MESSAGES),
        ({"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}]}, MESSAGES),
        ({"instruction": "a", "output": "b"}, INSTRUCTION),
        ({"instruction": "a", "input": None, "output": "b", "answer": 3}, INSTRUCTION),
        # UltraChat has both; only one is complete.
        ({"prompt": "a", "messages": [USER, ANSWER]}, MESSAGES),
        # A table of mixed rows fills up with None.
        ({"prompt": None, "completion": None, "instruction": "a", "output": "b"}, INSTRUCTION),
    ],
)
def test_kind_is_found(record: dict[str, Any], kind: Kind) -> None:
    assert check_record(record) is kind


def calling(calls: Any) -> dict[str, Any]:
    return {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": calls}]}


@pytest.mark.parametrize(
    ("record", "needle"),
    [
        ({"input": "a", "output": "b"}, "columns found: input, output;"),
        ({"prompt": "a"}, "'completion' is missing"),
        ({"prompt": "a", "completion": None}, "'completion' is missing or null"),
        ({"prompt": "a", "completion": " \n"}, "'completion' is empty"),
        ({"prompt": "a", "completion": 5}, "'completion' must be a string, not int 5"),
        ({"prompt": "", "completion": "b"}, "'prompt' is empty"),
        ({"prompt": None, "completion": "b"}, "'prompt' is missing or null"),
        ({"prompt": 5, "completion": "b"}, "'prompt' must be a string"),
        ({"prompt": "a \ud83d", "completion": "b"}, "half a surrogate pair at character 2"),
        ({"prompt": [USER], "completion": "b"}, "'completion' must be a list of messages"),
        ({"prompt": "a", "completion": [ANSWER]}, "'completion' must be a string"),
        ({"prompt": [USER, ANSWER], "completion": [ANSWER]}, "must not end with an assistant turn"),
        ({"prompt": [USER], "completion": [USER, ANSWER]}, "must come from the role 'assistant', not 'user'"),
        ({"instruction": "a"}, "'output' is missing"),
        ({"instruction": " ", "output": "b"}, "'instruction' is empty"),
        ({"instruction": "a", "input": 1, "output": "b"}, "'input' must be a string or absent, not int 1"),
        ({"messages": []}, "'messages' is empty"),
        ({"messages": "hello"}, "'messages' must be a list"),
        ({"messages": [ANSWER]}, "the prompt is empty"),
        ({"messages": [USER]}, "must come from the role 'assistant', not 'user'"),
        ({"messages": [USER, {"role": "assistant", "content": " "}]}, "response in 'messages' is empty"),
        ({"messages": ["hello", ANSWER]}, "message 1 of 'messages' must be an object"),
        ({"messages": [{"content": "x"}, ANSWER]}, "message 1 of 'messages' needs a 'role' string, not null"),
        ({"messages": [USER, {"role": "assistant"}]}, "message 2 of 'messages' needs a 'content' string"),
        (calling("weather"), "'tool_calls' of message 2 of 'messages' must be a list of calls, not str 'weather'"),
        (calling([{"id": "1"}]), "'tool_calls' of message 2 of 'messages' has dict {'id': '1'}; a call is an object"),
        (calling([{"function": {"name": "f", "arguments": "{x"}}]), "'arguments' in 'tool_calls' of message 2 of"),
        (calling([{"name": "f", "arguments": [1]}]), "must be an object, not list [1]"),
        ({"messages": [USER, ANSWER], "tools": 5}, "'tools' must be a list of objects or absent, not int 5"),
        ({"messages": [USER, ANSWER], "tools": {"a": 1}}, "'tools' must be a list of objects"),
        ({"messages": [USER, ANSWER], "tools": "[{"}, "'tools' is a text that is not JSON"),
        ({"messages": [USER, ANSWER], "chat_template_kwargs": [1]}, "'chat_template_kwargs' must be an object"),
        ({"prompt": "a", "completion": "b", "tools": [{"a": 1}]}, "'tools' is for messages"),
        (
            {"instruction": "a", "output": "b", "chat_template_kwargs": {"a": 1}},
            "'chat_template_kwargs' is for messages",
        ),
        ({"messages": [{"role": "us\ud83d", "content": "x"}, ANSWER]}, "'messages' has half a surrogate pair"),
        ({"prompt": 10**5000, "completion": "b"}, "'prompt' must be a string, not int <too large to be shown>"),
        ({}, "columns found: none"),
        (["a"], "must be an object of columns, not list"),
    ],
)
def test_unusable_record(record: Any, needle: str) -> None:
    with pytest.raises(DataError) as error:
        check_record(record)
    assert needle in str(error.value)


def test_unknown_kind_names_the_valid_sets() -> None:
    with pytest.raises(DataError, match=r"prompt \+ completion; messages; instruction \+ output \+ \[input\]"):
        check_record({"text": "a"})


@pytest.mark.parametrize(
    "record", [{"prompt": "a"}, {"prompt": [USER]}, {"messages": [USER]}, {"instruction": "a", "output": ""}]
)
def test_generation_needs_no_response(record: dict[str, Any]) -> None:
    check_record(record, need_response=False)
    with pytest.raises(DataError):
        check_record(record)


@pytest.mark.parametrize("names", [("text", "label"), ("sentence", "label"), ("question", "answer")])
def test_tables_of_labelled_texts_need_no_other_names(names: tuple[str, str], tmp_path: Path) -> None:
    text, label = names
    rows: list[dict[str, Any]] = [{text: "Where is it?", label: "delivery"}, {text: "Twice charged", label: 3}]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for source in (rows, str(file)):
        found = list(read_records(source).records)
        assert [(row["instruction"], row["output"]) for row in found] == [
            ("Where is it?", "delivery"),
            ("Twice charged", "3"),
        ]
        # by the names that the file gives too
        assert [row[text] for row in found] == [row[text] for row in rows]


def test_labels_of_a_dataset_have_their_names() -> None:
    features = Features(text=Value("string"), label=ClassLabel(names=["bad", "good"]))
    found = read_records(Dataset.from_dict({"text": ["a b", "c d"], "label": [1, 0]}, features=features)).records
    assert [row["output"] for row in found] == ["good", "bad"]


def test_our_own_names_win_and_half_a_pair_is_none() -> None:
    row = {"prompt": "p", "completion": " c", "text": "t", "label": "l"}
    assert check_record(read_records([row]).records[0]) is COMPLETION
    assert "instruction" not in read_records([row]).records[0]
    with pytest.raises(DataError, match=r"columns found: text; .*text \+ label"):
        read_records([{"text": "no label"}])
