"""A row for each answer of a conversation: the tokens and the edits that generation has before and in that answer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import get_peft_model

from reftune import DataError, ReftConfig, build_dataset, encode_prompt
from reftune.data import ReftCollator, split_record, split_turns
from tests.training.text_models import text_model, word_tokenizer


def turn(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


CHAT = {
    "messages": [
        turn("system", "w0"),
        turn("user", "w1 w2 w3"),
        turn("assistant", "w4 w5"),
        turn("user", "w6"),
        turn("assistant", "w7"),
        turn("user", "w8 w9"),
        turn("assistant", "w10 w11 w12"),
    ]
}


def test_each_answer_ends_a_record() -> None:
    rows = split_record(CHAT)
    assert [row["messages"] for row in rows] == [CHAT["messages"][:end] for end in (3, 5, 7)]
    parts = {"prompt": CHAT["messages"][:2], "completion": CHAT["messages"][2:], "tools": None}
    found = split_record(parts)
    assert [row["prompt"] + row["completion"] for row in found] == [row["messages"] for row in rows]
    assert [len(row["completion"]) for row in found] == [1, 1, 1]


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "w1", "completion": " w2"},
        {"instruction": "w1", "output": "w2"},
        {"messages": [turn("user", "w1"), turn("assistant", "w2")], "id": 3},
    ],
)
def test_what_has_one_answer_stays_as_it_is(record: dict[str, Any]) -> None:
    assert split_record(record) == [record]


def test_an_assistant_that_begins_has_no_prompt() -> None:
    messages = [turn("assistant", "w1"), *CHAT["messages"][1:3]]
    assert [row["messages"] for row in split_record({"messages": messages})] == [messages]


def test_calls_of_tools_are_answers() -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add", "arguments": {}}}]}
    messages = [turn("user", "w1"), call, turn("tool", "w2"), turn("assistant", "w3")]
    assert [len(row["messages"]) for row in split_record({"messages": messages})] == [2, 4]


def test_all_answers_are_rows_of_a_data_set() -> None:
    tokenizer = word_tokenizer()
    found = build_dataset([CHAT, {"prompt": "w1", "completion": " w2"}], tokenizer, train_on="all")
    assert len(found) == 4 and len(build_dataset([CHAT], tokenizer)) == 1
    for row, end in zip(list(found)[:3], (3, 5, 7), strict=True):
        prompt = encode_prompt({"messages": CHAT["messages"][: end - 1]}, tokenizer)
        assert row["input_ids"][: row["prompt_length"]] == prompt
        assert set(row["labels"][: row["prompt_length"]]) == {-100}
    with pytest.raises(DataError, match="train_on='first' is not valid; use one of 'last', 'all'"):
        build_dataset([CHAT], tokenizer, train_on="first")


def whole_row() -> dict[str, Any]:
    """The conversation in one row with several labelled stretches, as other frameworks make it."""
    tokenizer = word_tokenizer()
    rows = build_dataset([CHAT], tokenizer, train_on="all")
    ids = rows[2]["input_ids"]
    labels = [-100] * len(ids)
    for row in rows:
        end = len(row["input_ids"])
        assert ids[:end] == row["input_ids"]
        labels[row["prompt_length"] : end] = ids[row["prompt_length"] : end]
    return {"input_ids": ids, "labels": labels, "attention_mask": [1] * len(ids), "source": "a"}


def test_tokenised_rows_are_split_at_their_labels() -> None:
    wanted = build_dataset([CHAT], word_tokenizer(), train_on="all")
    row = whole_row()
    found = split_turns(Dataset.from_list([row, row]))
    assert len(found) == 6
    for a, b in zip(found, [*wanted, *wanted], strict=True):
        assert {name: a[name] for name in b} == b
        assert a["attention_mask"] == [1] * len(a["input_ids"]) and a["source"] == "a"


@pytest.mark.parametrize("mask", ["assistant_masks", "completion_mask"])
def test_masks_of_trl_are_labels(mask: str) -> None:
    row = whole_row()
    row[mask] = [int(label != -100) for label in row.pop("labels")]
    found = split_turns(Dataset.from_list([row]))
    assert [sum(m) for m in found[mask]] == [sum(label != -100 for label in labels) for labels in found["labels"]]
    assert found["prompt_length"] == build_dataset([CHAT], word_tokenizer(), train_on="all")["prompt_length"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"input_ids": [1, 2]}, "needs the columns 'input_ids' and 'labels'"),
        ({"input_ids": [1, 2], "labels": [-100, -100]}, "row 1: no token is labelled"),
        ({"input_ids": [1, 2], "labels": [1, 2]}, "row 1: its first token is labelled"),
        ({"input_ids": [1, 2], "labels": [1]}, "row 1: 2 tokens, but labels for 1"),
    ],
)
def test_what_cannot_be_split_is_told(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        split_turns(Dataset.from_list([row]))


@pytest.mark.parametrize("positions", ["l2", "f1+l1", "prompt", "response", "all", "turn(4,5):f1+l2+g1"])
def test_training_edits_what_generation_of_that_turn_edits(positions: str) -> None:
    torch.manual_seed(0)
    config = ReftConfig(task_type="CAUSAL_LM", r=2, positions=positions, init="random")
    model: Any = get_peft_model(text_model(), config).eval()
    tokenizer = word_tokenizer()
    rows = list(build_dataset([CHAT], tokenizer, train_on="all"))
    batch = ReftCollator(tokenizer)(rows)
    with torch.no_grad():
        trained = model(**batch).logits
        for i, row in enumerate(rows):
            prompt, ids = row["input_ids"][: row["prompt_length"]], row["input_ids"]
            begin = (batch["attention_mask"][i] == 0).sum() if batch["attention_mask"][i][0] == 0 else 0
            # the answer is forced, token by token, on what generate keeps of the prompt
            steps = model.generate(
                input_ids=torch.tensor([prompt]),
                max_new_tokens=len(ids) - len(prompt),
                do_sample=False,
                pad_token_id=0,
                output_logits=True,
                return_dict_in_generate=True,
                prefix_allowed_tokens_fn=lambda _, made, ids=ids: [ids[len(made)]],
            ).logits
            for k, logits in enumerate(steps):
                torch.testing.assert_close(trained[i, begin + len(prompt) - 1 + k], logits[0], rtol=1e-4, atol=1e-4)
