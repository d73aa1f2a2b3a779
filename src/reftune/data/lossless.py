"""What a chat template leaves out of a record is found, so that nothing else than the record says is trained or asked.

Templates drop in silence what they do not know: calls of tools, `tools`, a role, thoughts, a part of the answer.  A
piece is left out if the text stays the same when the piece is another.

Must not know: tokenizers, files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from reftune.errors import DataError

__all__ = ["THOUGHTS", "Chat", "check_prompt", "check_response"]

# Names under which templates look for what the model thought before it answered.
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
CALLS = ("tool_calls", "function_call")
MARK = "Q7j"
_OTHER_TEMPLATE = "use a tokenizer whose template does (tokenizer.chat_template)"
ADVICE = {
    "tool_calls": f"it does not know calls of tools, or not so many at once: {_OTHER_TEMPLATE}, or write the call as "
    "text into 'content'",
    "function_call": "it is the older form of a call: give 'tool_calls'",
    "tools": f"it does not know tools: {_OTHER_TEMPLATE}, write them as text into a message, or leave the column out",
    "documents": "it does not know documents: write them as text into a message, or leave the column out",
    **dict.fromkeys(
        THOUGHTS,
        f"it may know another name ({', '.join(THOUGHTS)}); else write it as text into 'content', or leave it out",
    ),
}

Turn = dict[str, Any]


@dataclass(frozen=True)
class Chat:
    """What a chat template is given: turns, and beside them `tools`, `documents` and options of the template."""

    turns: Sequence[Turn]
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def with_turn(self, index: int, **changed: Any) -> Chat:
        """The same with other fields in one turn."""
        turns = list(self.turns)
        turns[index] = {**turns[index], **changed}
        return replace(self, turns=turns)


Write = Callable[[Chat], str]


def check_prompt(chat: Chat, text: str, write: Write) -> None:
    """Refuse a template that writes `text` for the prompt and leaves a part of it out.

    Thoughts of earlier turns and labels (`name`, `tool_call_id`) may be missing: that is how models were trained.

    Raises:
        DataError: a turn, a call of a tool, `tools` or `documents` are not in the text.
    """
    for name in ("tools", "documents"):
        others = {key: value for key, value in chat.arguments.items() if key != name}
        if name in chat.arguments and _is_same(replace(chat, arguments=others), text, write):
            raise DataError(f"the chat template leaves out {name!r} of the row; {ADVICE[name]}")
    _check_turns(chat, range(len(chat.turns)), text, text, write)


def check_response(chat: Chat, first: int, text: str, response: str, write: Write) -> None:
    """Refuse a template that writes `text`, ending in `response` for the turns from `first`, not as they are.

    White space may be another.

    Raises:
        DataError: content, thoughts or a call of a tool of the response are not in the text, or not whole.
    """
    if not response.strip():
        raise DataError("the chat template renders no text for the assistant's turn")
    _check_turns(chat, range(first, len(chat.turns)), text, response, write)
    before, after = _squeezed(text.removesuffix(response)), _squeezed(response)
    for index in range(first, len(chat.turns)):
        turn = chat.turns[index]
        for name in ("content", *THOUGHTS) if turn["role"] == "assistant" else ():
            value = turn.get(name)
            if isinstance(value, str) and not _is_written(_squeezed(value), before, after):
                raise DataError(
                    f"the chat template leaves out {name!r} of the answer, or a part of it: the record has "
                    f"{_ends(value)}, the template writes {_ends(response)}; "
                    + ADVICE.get(name, "use a template that writes the answer as it is, or prompt + completion strings")
                )


def _check_turns(chat: Chat, chosen: range, text: str, part: str, write: Write) -> None:
    """`part` of `text` is what the chosen turns should be in."""
    if not _are_in_order(part, [chat.turns[i]["content"] for i in chosen]):
        for i in chosen:
            turn = chat.turns[i]
            if turn["content"].strip() and _is_same(chat.with_turn(i, content=MARK), text, write):
                raise DataError(
                    f"the chat template leaves out the text of message {i + 1}, of the role {turn['role']!r}: use a "
                    "template that knows this role, with all else that the message has, or leave the message out"
                )
    for i in chosen:
        for name in CALLS:
            for other in _other_calls(chat.turns[i].get(name)):
                if _is_same(chat.with_turn(i, **{name: other}), text, write):
                    raise DataError(
                        f"the chat template leaves out {name!r} of message {i + 1}, or a part of it; {ADVICE[name]}"
                    )


def _is_same(changed: Chat, text: str, write: Write) -> bool:
    try:
        return write(changed) == text
    except DataError:
        # what it refuses, it looks at
        return False


def _are_in_order(text: str, pieces: Sequence[str]) -> bool:
    """Whether all are in the text, each behind the one before: the quick look that nearly always suffices."""
    at = 0
    for piece in map(str.strip, pieces):
        found = text.find(piece, at)
        if found < 0:
            return False
        at = found + len(piece)
    return True


def _other_calls(calls: Any) -> list[Any]:
    """The calls with one thing changed in each: the name of one, the arguments of one."""
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        return [] if not calls else [{"name": MARK, "arguments": {MARK: MARK}}]
    found: list[Any] = []
    for i, call in enumerate(calls):
        is_nested = "function" in call
        function = call["function"] if is_nested else call
        for change in ({"name": MARK}, {"arguments": {MARK: MARK}}):
            # without arguments a template may well write none
            if "arguments" in change and not function.get("arguments"):
                continue
            other = {**function, **change}
            found.append([*calls[:i], {**call, "function": other} if is_nested else other, *calls[i + 1 :]])
    return found


def _is_written(value: str, before: str, after: str) -> bool:
    """Whether the answer has the value.  Its beginning may be the prompt's end: some templates begin with <think>."""
    return value in after or any(
        before.endswith(value[:k]) and value[k:] in after for k in range(1, min(len(value), 40))
    )


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _ends(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:40]} ... {text[-40:]}")
