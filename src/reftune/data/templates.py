"""Record to prompt text and response text.

Must not know: token ids, files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError  # torch itself depends on jinja2

from reftune.data.kinds import INSTRUCTION, MESSAGES, Record, check_encodable, check_record, is_conversation
from reftune.data.lossless import Chat, check_prompt, check_response
from reftune.data.strict import from_text, without_nulls
from reftune.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Rendered", "alpaca_text", "render"]

# The wording that Stanford Alpaca published, and that models tuned on its kind of data expect to the letter.
_ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
_ALPACA_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)

# What the record itself says, or this module; a template's options cannot say otherwise.
RESERVED = ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "tokenize")


@dataclass(frozen=True)
class Rendered:
    """Text of a record.  `chat`: a chat template wrote it, special tokens included."""

    prompt: str
    response: str | None
    chat: bool


def render(record: Record | str, tokenizer: PreTrainedTokenizerBase, *, need_response: bool) -> Rendered:
    """Prompt and, where asked for, response.  The prompt is the same text either way; a string is raw prompt text.

    Raises:
        DataError: the record is not usable, or the chat template does not write it as it is.
    """
    if isinstance(record, str):
        record = {"prompt": record}
    kind = check_record(record, need_response=need_response)
    if kind is INSTRUCTION:
        return Rendered(alpaca_text(record), record["output"] if need_response else None, chat=False)
    if kind is MESSAGES:
        turns = record["messages"]
        # For generation an answer may be absent; where there is one, it is not part of the prompt.
        split = len(turns) - 1 if turns[-1]["role"] == "assistant" else len(turns)
        return _render_chat(record, turns[:split], turns[split:] if need_response else None, tokenizer)
    if is_conversation(record["prompt"]):
        return _render_chat(record, record["prompt"], record["completion"] if need_response else None, tokenizer)
    return Rendered(record["prompt"], record["completion"] if need_response else None, chat=False)


def alpaca_text(record: Record) -> str:
    """Stanford Alpaca's prompt for `instruction` and, if there is one, `input`; it ends with `### Response:`."""
    if (record.get("input") or "").strip():
        return _ALPACA_WITH_INPUT.format(instruction=record["instruction"], input=record["input"])
    return _ALPACA_WITHOUT_INPUT.format(instruction=record["instruction"])


def _render_chat(
    record: Record, prompt: Sequence[Record], response: Sequence[Record] | None, tokenizer: PreTrainedTokenizerBase
) -> Rendered:
    if not tokenizer.chat_template:
        raise DataError(
            "the tokenizer has no chat template, which messages need: set tokenizer.chat_template, or give "
            "prompt + completion strings"
        )
    try:
        asked = Chat([_clean(turn) for turn in prompt], _arguments(record, tokenizer))
        answer = [_clean(turn) for turn in response or []]
    except RecursionError as error:
        raise DataError("lists or objects in the row are nested too deeply") from error
    write_prompt = partial(_apply, tokenizer=tokenizer, add_generation_prompt=True)
    prompt_text = write_prompt(asked)
    check_prompt(asked, prompt_text, write_prompt)
    if response is None:
        return Rendered(prompt_text, None, chat=True)
    whole = replace(asked, turns=[*asked.turns, *answer])
    write = partial(_apply, tokenizer=tokenizer, add_generation_prompt=False)
    text = write(whole)
    if not text.startswith(prompt_text):
        raise DataError(
            "the chat template rewrites the prompt once the answer is there, so training would not see the prompt that "
            f"generation sees: the conversation does not begin with the prompt, which ends {prompt_text[-60:]!r}; use "
            "a template that keeps earlier text, an option of it in the column 'chat_template_kwargs' (such as "
            "enable_thinking: false), or prompt + completion strings"
        )
    response_text = text[len(prompt_text) :]
    check_response(whole, len(prompt), text, response_text, write)
    return Rendered(prompt_text, response_text, chat=True)


def _apply(chat: Chat, tokenizer: PreTrainedTokenizerBase, *, add_generation_prompt: bool) -> str:
    turns: Any = list(chat.turns)
    try:
        text = tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=add_generation_prompt, **chat.arguments
        )
    # a template is a program: it fails in as many ways
    except (
        TemplateError,
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        roles = ", ".join(turn["role"] for turn in turns)
        raise DataError(f"the chat template refuses these messages (roles: {roles}): {error}") from error
    assert isinstance(text, str)
    check_encodable(text, "what the chat template writes")
    return text


def _clean(turn: Record) -> dict[str, Any]:
    """The turn without the None that tables fill in: many templates test whether a key is there."""
    clean = {"content": "", **{key: value for key, value in turn.items() if value is not None}}
    if clean.get("tool_calls"):
        clean["tool_calls"] = [_clean_call(call) for call in without_nulls(clean["tool_calls"])]
    return clean


def _clean_call(call: dict[str, Any]) -> dict[str, Any]:
    """The call with its arguments as an object, which templates look for, and not as JSON text, which APIs give."""
    if "function" in call:
        return {**call, "function": _clean_call(call["function"])}
    return {**call, "arguments": from_text(call["arguments"])} if "arguments" in call else call


def _arguments(record: Record, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What the template is given beside the turns."""
    found = {name: without_nulls(from_text(record[name])) for name in ("tools", "documents") if record.get(name)}
    options = without_nulls(from_text(record.get("chat_template_kwargs") or {}))
    template = str(tokenizer.get_chat_template(tools=found.get("tools")))
    unknown = [name for name in options if name in RESERVED or not re.search(rf"\b{re.escape(name)}\b", template)]
    if unknown:
        raise DataError(
            f"'chat_template_kwargs' has {', '.join(map(repr, unknown))}, which the chat template does not know; take "
            "it out, or use another template"
        )
    return {**found, **options}
