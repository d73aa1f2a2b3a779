"""Requests to prompts: tools and calls of them reach the template; an adapter of which nothing is known is told."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from reftune import DataError, PromptStyle, encode_prompt
from reftune.serving.embedded.schemas import ChatRequest
from reftune.serving.prompts import PromptReader, style_of
from tests.training.text_models import TEMPLATE, word_tokenizer

CALLS = "{% for c in m['tool_calls'] or [] %}w9 {{ c['function']['arguments']['city'] }} {% endfor %}"
KNOWS_TOOLS = "{% for t in tools or [] %}{{ t['function']['name'] }} {% endfor %}" + TEMPLATE.replace("</s> ", CALLS)
TOOLS = [{"type": "function", "function": {"name": "w5"}}]


def asked(template: str, style: PromptStyle | None, *turns: dict[str, Any], **more: Any) -> list[int]:
    tokenizer = word_tokenizer(template=template)
    body = ChatRequest(model="a", messages=[*turns], **more)  # type: ignore[arg-type]
    reader = PromptReader(tokenizer, limit=100, vocabulary=100)
    return reader.chat([message.as_turn() for message in body.messages], style, body.tools).ids


def test_tools_and_calls_reach_the_template() -> None:
    tokenizer = word_tokenizer()
    user = {"role": "user", "content": "w1"}
    assert asked(KNOWS_TOOLS, None, user, tools=TOOLS) == encode_prompt("w5 <user> w1 <assistant>", tokenizer)
    call = {"id": "1", "type": "function", "function": {"name": "w5", "arguments": '{"city": "w8"}'}}
    # the template writes the name of the function nowhere: that is not the whole call
    with pytest.raises(DataError, match="'tool_calls' of message 2"):
        turns = ({"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "content": "w7"})
        asked(KNOWS_TOOLS, None, user, *turns, tools=TOOLS)
    whole = KNOWS_TOOLS.replace("w9 ", "w9 {{ c['function']['name'] }} ")
    result = {"role": "tool", "content": "w7", "tool_call_id": "1", "name": "w5"}
    ids = asked(whole, None, user, {"role": "assistant", "content": None, "tool_calls": [call]}, result, tools=TOOLS)
    assert ids == encode_prompt("w5 <user> w1 <assistant> w9 w5 w8 <tool> w7 <assistant>", tokenizer)


def test_tools_that_cannot_be_told_are_refused() -> None:
    user = {"role": "user", "content": "w1"}
    with pytest.raises(DataError, match=r"'tools'.*does not know tools"):
        asked(TEMPLATE, None, user, tools=TOOLS)
    with pytest.raises(DataError, match="'tools' is for messages"):
        asked(KNOWS_TOOLS, PromptStyle("prompt"), user, tools=TOOLS)


def test_an_adapter_without_a_style_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="reftune.serving"):
        assert style_of(tmp_path, name="mine") is None
    assert "'mine' has no reftune.json" in caplog.text and "by the chat template" in caplog.text
    caplog.clear()
    PromptStyle("prompt").write(tmp_path)
    with caplog.at_level(logging.WARNING, logger="reftune.serving"):
        assert style_of(tmp_path, name="mine") == PromptStyle("prompt")
    assert not caplog.text
