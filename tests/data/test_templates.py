"""Record to prompt and response text."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from reftune.data.templates import Rendered, render
from reftune.errors import DataError

USER = {"role": "user", "content": "hello"}
ANSWER = {"role": "assistant", "content": "yes"}


def test_strings(bpe: PreTrainedTokenizerFast) -> None:
    record = {"prompt": "a ", "completion": "b"}
    assert render(record, bpe, need_response=True) == Rendered("a ", "b", chat=False)
    assert render(record, bpe, need_response=False) == Rendered("a ", None, chat=False)
    assert render("a ", bpe, need_response=False) == Rendered("a ", None, chat=False)


def test_alpaca(bpe: PreTrainedTokenizerFast) -> None:
    record = {"instruction": "Add {0}.", "input": "1, {2}", "output": "3"}
    assert render(record, bpe, need_response=True) == Rendered(
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nAdd {0}.\n\n### Input:\n1, {2}\n\n"
        "### Response:",
        "3",
        chat=False,
    )
    short = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nAdd {0}.\n\n### Response:"
    )
    for empty in ({}, {"input": ""}, {"input": " \n"}, {"input": None}):
        record = {"instruction": "Add {0}.", "output": "3", **empty}
        assert render(record, bpe, need_response=True).prompt == short


@pytest.mark.parametrize(
    "record",
    [{"messages": [USER, ANSWER]}, {"prompt": [USER], "completion": [ANSWER]}],
    ids=["messages", "trl"],
)
def test_chat(chat: PreTrainedTokenizerFast, record: dict[str, Any]) -> None:
    prompt = "<s><|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert render(record, chat, need_response=True) == Rendered(prompt, "yes<|im_end|>\n", chat=True)
    assert render(record, chat, need_response=False) == Rendered(prompt, None, chat=True)


def test_response_is_the_last_assistant_turn(chat: PreTrainedTokenizerFast) -> None:
    rendered = render({"messages": [USER, ANSWER, USER, ANSWER]}, chat, need_response=True)
    assert rendered.response == "yes<|im_end|>\n"
    assert rendered.prompt.count("yes") == 1
    # Without an answer all turns are the prompt.
    assert render({"messages": [USER, ANSWER, USER]}, chat, need_response=False).prompt == rendered.prompt


def test_nulls_of_a_table_are_not_shown_to_the_template(chat: PreTrainedTokenizerFast) -> None:
    chat.chat_template = "{% for m in messages %}{{ 'NAME' if 'name' in m }}{{ m.content }};{% endfor %}"
    turns = [{**USER, "name": None}, {**ANSWER, "name": None}]
    assert render({"messages": turns}, chat, need_response=True) == Rendered("hello;", "yes;", chat=True)


def test_no_template(bpe: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match="no chat template"):
        render({"messages": [USER, ANSWER]}, bpe, need_response=True)


def test_template_that_rewrites(chat: PreTrainedTokenizerFast) -> None:
    chat.chat_template = (
        "{{ messages | length }} turns{% for m in messages %} {{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %} >{% endif %}"
    )
    with pytest.raises(DataError, match="rewrites the prompt"):
        render({"messages": [USER, ANSWER]}, chat, need_response=True)


def test_template_that_refuses(chat: PreTrainedTokenizerFast) -> None:
    chat.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(DataError, match=r"\(roles: user\): roles must alternate"):
        render({"messages": [USER, ANSWER]}, chat, need_response=True)


def test_template_without_the_answer(chat: PreTrainedTokenizerFast) -> None:
    chat.chat_template = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    with pytest.raises(DataError, match="no text for the assistant"):
        render({"messages": [USER, ANSWER]}, chat, need_response=True)
