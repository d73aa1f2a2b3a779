"""Record to prompt text and response text.

Must not know: token ids, files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError  # torch itself depends on jinja2

from reftune.data.kinds import INSTRUCTION, MESSAGES, Record, check_record, is_conversation
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


@dataclass(frozen=True)
class Rendered:
    """Text of a record.  `chat`: a chat template wrote it, special tokens included."""

    prompt: str
    response: str | None
    chat: bool


def render(record: Record | str, tokenizer: PreTrainedTokenizerBase, *, need_response: bool) -> Rendered:
    """Prompt and, where asked for, response.  The prompt is the same text either way; a string is raw prompt text."""
    if isinstance(record, str):
        record = {"prompt": record}
    kind = check_record(record, need_response=need_response)
    if kind is INSTRUCTION:
        return Rendered(alpaca_text(record), record["output"] if need_response else None, chat=False)
    if kind is MESSAGES:
        turns = record["messages"]
        # For generation an answer may be absent; where there is one, it is not part of the prompt.
        split = len(turns) - 1 if turns[-1]["role"] == "assistant" else len(turns)
        return _render_chat(turns[:split], turns[split:] if need_response else None, tokenizer)
    if is_conversation(record["prompt"]):
        return _render_chat(record["prompt"], record["completion"] if need_response else None, tokenizer)
    return Rendered(record["prompt"], record["completion"] if need_response else None, chat=False)


def alpaca_text(record: Record) -> str:
    """Stanford Alpaca's prompt for `instruction` and, if there is one, `input`; it ends with `### Response:`."""
    if (record.get("input") or "").strip():
        return _ALPACA_WITH_INPUT.format(instruction=record["instruction"], input=record["input"])
    return _ALPACA_WITHOUT_INPUT.format(instruction=record["instruction"])


def _render_chat(
    prompt: Sequence[Record], response: Sequence[Record] | None, tokenizer: PreTrainedTokenizerBase
) -> Rendered:
    prompt_text = _apply(prompt, tokenizer, add_generation_prompt=True)
    if response is None:
        return Rendered(prompt_text, None, chat=True)
    full_text = _apply([*prompt, *response], tokenizer, add_generation_prompt=False)
    if not full_text.startswith(prompt_text):
        raise DataError(
            "the chat template rewrites the prompt once the answer is there, so training would not see the prompt that "
            f"generation sees: the conversation does not begin with the prompt, which ends {prompt_text[-60:]!r}; use "
            "a template that keeps earlier text, or prompt + completion strings"
        )
    response_text = full_text[len(prompt_text) :]
    if not response_text.strip():
        raise DataError("the chat template renders no text for the assistant's turn")
    return Rendered(prompt_text, response_text, chat=True)


def _apply(turns: Sequence[Record], tokenizer: PreTrainedTokenizerBase, *, add_generation_prompt: bool) -> str:
    if not tokenizer.chat_template:
        raise DataError(
            "the tokenizer has no chat template, which messages need: set tokenizer.chat_template, or give "
            "prompt + completion strings"
        )
    conversation: list[dict[str, Any]] = [_clean(turn) for turn in turns]
    try:
        text = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=add_generation_prompt)
    except (TemplateError, TypeError, ValueError) as error:
        roles = ", ".join(turn["role"] for turn in turns)
        raise DataError(f"the chat template refuses these messages (roles: {roles}): {error}") from error
    assert isinstance(text, str)
    return text


def _clean(turn: Record) -> dict[str, Any]:
    """The turn without the None that tables fill in: many templates test whether a key is there."""
    return {"content": "", **{key: value for key, value in turn.items() if value is not None}}
