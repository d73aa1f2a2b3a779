"""What a chat template leaves out of a record is refused; what it knows reaches it, in training and in generation."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from reftune import DataError, build_dataset, encode_prompt, tokenize_record
from reftune.data.templates import render

USER = {"role": "user", "content": "Weather?"}
ANSWER = {"role": "assistant", "content": "sunny"}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "tells the weather"}}]
RESULT = {"role": "tool", "name": "weather", "content": "21"}

TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}"
ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
KNOWS_TOOLS = (
    "{% if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}{% for m in messages %}" + TURN
    + "{% for call in m.tool_calls or [] %}<call>{{ call.function | tojson }}{% endfor %}<|im_end|>\n{% endfor %}" + ASK
)  # fmt: skip


def calling(*calls: dict[str, Any], content: str | None = None) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "tool_calls": [*calls] or [CALL]}


def template(turn: str) -> str:
    return f"{{% for m in messages %}}{turn}<|im_end|>\n{{% endfor %}}{ASK}"


# A template, a record of which it loses a part, and what is told of it.
LOST: dict[str, tuple[str, dict[str, Any], str]] = {
    "call": (template(TURN), {"messages": [USER, calling()]}, "'tool_calls' of message 2.*write the call as text"),
    "call beside text": (
        template(TURN), {"messages": [USER, calling(content="I look")]}, "'tool_calls' of message 2"
    ),
    "second call": (
        template(TURN + "{{ m.tool_calls[0].function if m.tool_calls }}"),
        {"messages": [USER, calling(CALL, {"function": {"name": "time"}})]},
        "'tool_calls' of message 2, or a part of it",
    ),
    "arguments": (
        template(TURN + "{{ m.tool_calls[0].function.name if m.tool_calls }}"),
        {"messages": [USER, calling()]},
        "'tool_calls' of message 2, or a part of it",
    ),
    "text beside a call": (
        template("<|im_start|>{{ m.role }}\n{{ m.tool_calls if m.tool_calls else m.content }}"),
        {"messages": [USER, calling(content="I look")]},
        "text of message 2, of the role 'assistant'",
    ),
    "earlier call": (template(TURN), {"messages": [USER, calling(), RESULT, ANSWER]}, "'tool_calls' of message 2"),
    "older form of a call": (
        template(TURN),
        {"messages": [USER, {**ANSWER, "function_call": {"name": "weather", "arguments": "{}"}}]},
        "'function_call' of message 2.*give 'tool_calls'",
    ),
    "tools": (template(TURN), {"messages": [USER, ANSWER], "tools": TOOLS}, "'tools' of the row"),
    "documents": (template(TURN), {"messages": [USER, ANSWER], "documents": [{"text": "a"}]}, "'documents' of the row"),
    "option": (
        template(TURN), {"messages": [USER, ANSWER], "chat_template_kwargs": {"think": False}}, "'think'.*not know"
    ),
    "option that is not the template's": (
        template(TURN),
        {"messages": [USER, ANSWER], "chat_template_kwargs": {"add_generation_prompt": False}},
        "'add_generation_prompt'",
    ),
    "thoughts": (
        template(TURN), {"messages": [USER, {**ANSWER, "reasoning_content": "clouds?"}]}, "'reasoning_content' of"
    ),
    "thoughts in the answer": (
        template("<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}"),
        {"messages": [USER, {"role": "assistant", "content": "<think>clouds?</think>sunny"}]},
        "'content' of the answer, or a part of it: the record has '<think>clouds",
    ),
    "end of the answer": (
        template("<|im_start|>{{ m.role }}\n{{ m.content[:8] }}"),
        {"messages": [USER, {"role": "assistant", "content": "sunny, and later rain"}]},
        "'content' of the answer, or a part of it: the record has 'sunny, and",
    ),
    "answer": (
        template("<|im_start|>{{ m.role }}\n{{ m.content if m.role == 'user' }}"),
        {"messages": [USER, ANSWER]},
        "text of message 2, of the role 'assistant'",
    ),
    "system": (
        template("{% if m.role != 'system' %}" + TURN + "{% endif %}"),
        {"messages": [{"role": "system", "content": "be kind"}, USER, ANSWER]},
        "text of message 1, of the role 'system'",
    ),
    "role": (
        template("{% if m.role != 'tool' %}" + TURN + "{% endif %}"),
        {"messages": [USER, RESULT, ANSWER]},
        "text of message 2, of the role 'tool'",
    ),
    "turn in the middle": (
        template("{% if m.role == 'user' or loop.last %}" + TURN + "{% endif %}"),
        {"messages": [USER, {"role": "assistant", "content": "rain"}, USER, ANSWER]},
        "text of message 2, of the role 'assistant'",
    ),
    "texts of a template for parts": (
        template("{% for part in m.content %}{{ part.text }}{% endfor %}"),
        {"messages": [USER, ANSWER]},
        "text of message 1, of the role 'user'",
    ),
    "response in several turns": (
        template(TURN), {"prompt": [USER], "completion": [calling(), RESULT, ANSWER]}, "'tool_calls' of message 2"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LOST)
def test_what_a_template_leaves_out_is_refused(chat: PreTrainedTokenizerFast, name: str) -> None:
    chat.chat_template, record, told = LOST[name]
    with pytest.raises(DataError, match=f"(?s){told}"):
        tokenize_record(record, chat)


@pytest.mark.parametrize(
    "name", ["tools", "documents", "option", "system", "role", "turn in the middle", "earlier call"]
)
def test_a_prompt_that_would_not_be_whole_is_refused_in_generation(chat: PreTrainedTokenizerFast, name: str) -> None:
    chat.chat_template, record, told = LOST[name]
    with pytest.raises(DataError, match=f"(?s){told}"):
        encode_prompt({**record, "messages": record["messages"][:-1]}, chat)


def test_a_call_of_a_tool_is_trained_and_tools_are_in_the_prompt(chat: PreTrainedTokenizerFast) -> None:
    chat.chat_template = KNOWS_TOOLS
    record = {"messages": [USER, calling()], "tools": TOOLS}
    rendered = render(record, chat, need_response=True)
    assert rendered.response == '<call>{"name": "weather", "arguments": {"city": "Paris"}}<|im_end|>\n'
    assert "tells the weather" in rendered.prompt
    example = tokenize_record(record, chat)
    prompt = encode_prompt({"messages": [USER], "tools": TOOLS}, chat)
    assert example.input_ids[: example.prompt_length] == prompt
    assert prompt != encode_prompt({"messages": [USER]}, chat)


def test_tables_and_json_texts_say_the_same(chat: PreTrainedTokenizerFast) -> None:
    chat.chat_template = KNOWS_TOOLS
    function = {"name": "weather", "arguments": '{"city": "Paris"}', "days": None}
    table = {
        "messages": [{**USER, "tool_calls": None}, calling({**CALL, "function": function})],
        "tools": '[{"type": "function", "function": {"name": "weather", "description": "tells the weather"}}]',
        "documents": None,
        "chat_template_kwargs": {},
    }
    assert tokenize_record(table, chat) == tokenize_record({"messages": [USER, calling()], "tools": TOOLS}, chat)
    two = [{**TOOLS[0], "function": {"name": name, key: "x"}} for name, key in (("weather", "a"), ("time", "b"))]
    rows = [{"messages": [USER, ANSWER], "tools": [tool]} for tool in two]
    from_table = build_dataset(datasets.Dataset.from_list(rows), chat)
    assert from_table["input_ids"][:] == build_dataset(rows, chat)["input_ids"][:]


def test_options_of_the_template_reach_it(chat: PreTrainedTokenizerFast) -> None:
    chat.chat_template = template(TURN).replace(ASK, "{% if not think %}<s>{% endif %}" + ASK)
    asked = {"messages": [USER], "chat_template_kwargs": {"think": True}}
    assert encode_prompt(asked, chat) != encode_prompt({"messages": [USER]}, chat)


@pytest.mark.parametrize(
    ("turn", "answer"),
    [
        # white space is the template's own affair
        ("<|im_start|>{{ m.role }}\n{{ m.content | trim }}", "  sunny\n"),
        # thoughts of earlier turns are dropped by design, and the prompt's end may be the answer's beginning
        ("<|im_start|>{{ m.role }}\n{{ m.content if loop.last else m.content.split('</think>')[-1] }}", "sunny"),
        ("<|im_start|>{{ m.role }}\n{{ m.reasoning_content }}{{ m.content }}", "sunny"),
        # the answer begins with what was said before
        (TURN, "Weather?"),
    ],
)
def test_what_is_only_written_otherwise_is_taken(chat: PreTrainedTokenizerFast, turn: str, answer: str) -> None:
    chat.chat_template = template(turn)
    earlier = {"role": "assistant", "content": "<think>clouds?</think>rain"}
    rendered = render(
        {"messages": [USER, earlier, USER, {"role": "assistant", "content": answer}]}, chat, need_response=True
    )
    assert answer.strip() in (rendered.response or "")


def test_a_prompt_may_open_the_thoughts(chat: PreTrainedTokenizerFast) -> None:
    opened = ASK.replace("assistant\n", "assistant\n<think>")
    chat.chat_template = template(TURN).replace(ASK, opened)
    answer = {"role": "assistant", "content": "<think>clouds?</think>sunny"}
    assert render({"messages": [USER, answer]}, chat, need_response=True).response == "clouds?</think>sunny<|im_end|>\n"


def test_a_template_fails_in_many_ways(chat: PreTrainedTokenizerFast) -> None:
    deep: Any = []
    for _ in range(5000):
        deep = [deep]
    for expression in ("1 // 0", "'%d' % m.role", "[][3].x", "raise_exception('no')"):
        chat.chat_template = template(f"{{{{ {expression} }}}}")
        with pytest.raises(DataError, match="chat template refuses"):
            encode_prompt({"messages": [USER]}, chat)
    chat.chat_template = KNOWS_TOOLS
    with pytest.raises(DataError, match="nested too deeply"):
        encode_prompt({"messages": [USER], "tools": [{"name": deep}]}, chat)
    with pytest.raises(DataError, match="half a surrogate pair"):
        encode_prompt({"messages": [USER], "tools": [{"name": "\ud83d"}]}, chat)


# Templates of published models, which TRL carries: what they know, and what of it they lose.
CALLING, THINKING = {"messages": [USER, calling()]}, {"messages": [USER, {**ANSWER, "reasoning_content": "clouds?"}]}
TWO_CALLS, BOTH = {"messages": [USER, calling(CALL, CALL)]}, {"messages": [USER, calling(content="I look")]}
RENAMES = hasattr(chat_template_utils, "_REASONING_FIELDS")
PUBLISHED: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
    "qwen2_5": ([CALLING, TWO_CALLS, BOTH], [THINKING]),
    "qwen3": ([CALLING, TWO_CALLS, BOTH, THINKING], []),
    "qwen3_5_think": ([CALLING, THINKING], []),
    # its name for it is another, which transformers puts in since some version after 5.16
    "gptoss": ([CALLING, BOTH, THINKING], [TWO_CALLS]) if RENAMES else ([CALLING, BOTH], [TWO_CALLS, THINKING]),
    "llama3_1": ([CALLING], [BOTH, TWO_CALLS, THINKING]),
    "lfm2": ([], [CALLING, THINKING]),
    "phi3": ([], [CALLING, THINKING]),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_templates(chat: PreTrainedTokenizerFast, name: str) -> None:
    spec = find_spec("trl")
    assert spec is not None and spec.submodule_search_locations
    file = Path(spec.submodule_search_locations[0]) / "chat_templates" / f"{name}.jinja"
    chat.chat_template = file.read_text(encoding="utf-8")
    knows, loses = PUBLISHED[name]
    system = {"role": "system", "content": "be kind"}
    for record in ({"messages": [USER, ANSWER]}, {"messages": [system, USER, ANSWER, USER, ANSWER]}, *knows):
        assert (render(record, chat, need_response=True).response or "").strip()
    for record in loses:
        with pytest.raises(DataError):
            render(record, chat, need_response=True)
