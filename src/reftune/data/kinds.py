"""The three kinds of record, and what makes a record of each kind usable.

Errors raised here name the column and what is wrong with it; callers who know the file and the row put these in front.

Must not know: files, tokenizers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reftune.data.strict import from_text
from reftune.errors import DataError
from reftune.values import shown

__all__ = [
    "COLUMNS",
    "COMPLETION",
    "EXTRAS",
    "INSTRUCTION",
    "KINDS",
    "MESSAGES",
    "Kind",
    "Record",
    "check_all_choose",
    "check_encodable",
    "check_record",
    "chosen_parts",
    "is_conversation",
    "with_usual_names",
]

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Kind:
    """The columns of one kind of record.  `response` is None where the prompt column holds the response as well."""

    prompt: str
    response: str | None
    optional: tuple[str, ...] = ()

    @property
    def required(self) -> tuple[str, ...]:
        return (self.prompt,) if self.response is None else (self.prompt, self.response)

    def __str__(self) -> str:
        return " + ".join([*self.required, *(f"[{name}]" for name in self.optional)])


COMPLETION = Kind("prompt", "completion")
MESSAGES = Kind("messages", None)
INSTRUCTION = Kind("instruction", "output", ("input",))

# In this order: the first kind whose required columns are all filled wins.
KINDS = (COMPLETION, MESSAGES, INSTRUCTION)
# Columns of tables of labelled texts and of questions, which stand for INSTRUCTION's.
OTHER_NAMES = (("text", "label"), ("sentence", "label"), ("question", "answer"))
# What a chat template is given beside the messages.
EXTRAS = {"tools": "a list of objects", "documents": "a list of objects", "chat_template_kwargs": "an object"}
COLUMNS = frozenset(
    [*EXTRAS, "spans", "subspaces", *(name for kind in KINDS for name in (*kind.required, *kind.optional))]
)


def check_record(record: Record, *, need_response: bool = True) -> Kind:
    """The kind of `record`, once its prompt and, where needed, its response are seen to be usable."""
    kind = _kind_of(record)
    _CHECKS[kind](record, need_response)
    _check_extras(record, chat=kind is MESSAGES or is_conversation(record[kind.prompt]))
    chosen_parts(record)
    return kind


def chosen_parts(record: Record) -> list[int] | None:
    """The parts of the adapter's `subspaces` that a row trains and is answered with, by its column of that name.

    Raises:
        DataError: it is no list of whole numbers from 0, nor a text of one, as CSV has it.
    """
    value = record.get("subspaces")
    if value is None or value == "":
        return None
    found = _parsed(value, "'subspaces'")
    if not isinstance(found, (list, tuple)) or not all(type(part) is int and part >= 0 for part in found):
        raise DataError(
            f"'subspaces' must be a list of parts by number, such as [0] or [0, 1], not {_described(value)}"
        )
    return list(found)


def check_all_choose(chosen: Sequence[list[int] | None], where: str) -> None:
    """Of rows, some of which name parts of the rank, all must: others would train or ask for all parts unasked.

    Raises:
        DataError: one does not.
    """
    without = next((number for number, parts in enumerate(chosen, start=1) if parts is None), None)
    if without is not None:
        raise DataError(
            f"{where}: row {without} has no 'subspaces' and others have; give all rows some, "
            "such as [0, 1] for both of two parts"
        )


def with_usual_names(record: Record, labels: Sequence[str] | None = None) -> Record:
    """`record` with INSTRUCTION's columns too, if it has a text and its label, or a question and its answer, instead.

    A label that is a whole number is its digits, or its name in `labels`, as data sets of the Hub have them.
    """
    if not isinstance(record, Mapping) or any(record.get(kind.prompt) is not None for kind in KINDS):
        return record
    for prompt, response in OTHER_NAMES:
        text, answer = record.get(prompt), record.get(response)
        if text is not None and answer is not None:
            if type(answer) is int:
                answer = labels[answer] if labels and 0 <= answer < len(labels) else str(answer)
            return {**record, INSTRUCTION.prompt: text, "output": answer}
    return record


def is_conversation(value: object) -> bool:
    """Whether a `prompt` or a `completion` holds messages, as TRL's conversational form does, instead of text."""
    return isinstance(value, list)


def _kind_of(record: Record) -> Kind:
    if not isinstance(record, Mapping):
        raise DataError(f"a row must be an object of columns, not {_described(record)}")
    # A table fills the columns that a row does not have with None, so that a None tells nothing about the kind.
    filled = {name for name, value in record.items() if value is not None}
    for kind in KINDS:
        if filled.issuperset(kind.required):
            return kind
    for names in (filled, record):
        for kind in KINDS:
            if kind.prompt in names:
                return kind
    found = ", ".join(sorted(map(str, record))) or "none"
    sets = [*map(str, KINDS), *map(" + ".join, OTHER_NAMES)]
    raise DataError(
        f"columns found: {found}; a row needs one of these sets: {'; '.join(sets)} (prompts alone: prompt, "
        "messages or instruction)"
    )


def _check_completion(record: Record, need_response: bool) -> None:
    conversation = is_conversation(record["prompt"])
    if not conversation:
        _check_text(record, "prompt")
    else:
        _check_turns(record["prompt"], "prompt")
        if record["prompt"][-1]["role"] == "assistant":
            raise DataError("'prompt' must not end with an assistant turn: that turn belongs into 'completion'")
    if not need_response:
        return
    if not conversation:
        _check_text(record, "completion")
        return
    _check_turns(record.get("completion"), "completion")
    for turn in (record["completion"][0], record["completion"][-1]):
        _check_answer(turn, "completion")


def _check_messages(record: Record, need_response: bool) -> None:
    messages = record["messages"]
    _check_turns(messages, "messages")
    answered = messages[-1]["role"] == "assistant"
    if answered and len(messages) == 1:
        raise DataError("'messages' has no turn before the assistant's: the prompt is empty")
    if need_response:
        _check_answer(messages[-1], "messages")


def _check_instruction(record: Record, need_response: bool) -> None:
    _check_text(record, "instruction")
    if (extra := record.get("input")) is not None:
        if not isinstance(extra, str):
            raise DataError(f"'input' must be a string or absent, not {_described(extra)}")
        check_encodable(extra, "'input'")
    if need_response:
        _check_text(record, "output")


_CHECKS: Mapping[Kind, Callable[[Record, bool], None]] = {
    COMPLETION: _check_completion,
    MESSAGES: _check_messages,
    INSTRUCTION: _check_instruction,
}


def _check_extras(record: Record, *, chat: bool) -> None:
    """What a chat template is given beside the messages; each may be JSON text, as tables have it."""
    for name, form in EXTRAS.items():
        if not record.get(name):
            continue
        if not chat and name == "documents":
            continue  # a column of its own, as many tables have it
        if not chat:
            raise DataError(
                f"{name!r} is for messages, which a chat template writes; a prompt of text has no place for it: write "
                "it into the prompt, or leave the column out"
            )
        value = _parsed(record[name], repr(name))
        objects = value if isinstance(value, (list, tuple)) else [value]
        if isinstance(value, Mapping) != (form == "an object") or not all(isinstance(o, Mapping) for o in objects):
            raise DataError(f"{name!r} must be {form} or absent, not {_described(value)}")


def _check_calls(calls: object, where: str) -> None:
    what = f"'tool_calls' of {where}"
    if not isinstance(calls, (list, tuple)):
        raise DataError(f"{what} must be a list of calls, not {_described(calls)}")
    for call in calls:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise DataError(
                f"{what} has {_described(call)}; a call is an object such as "
                '{"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}'
            )
        arguments = function.get("arguments")
        if arguments is not None and not isinstance(_parsed(arguments, f"'arguments' in {what}"), Mapping):
            raise DataError(f"'arguments' in {what} must be an object, not {_described(arguments)}")


def _parsed(value: object, what: str) -> object:
    try:
        return from_text(value)
    except ValueError as error:
        raise DataError(f"{what} is a text that is not JSON ({error}): {_described(value)}") from error


def _check_text(record: Record, column: str) -> None:
    value = record.get(column)
    if value is None:
        raise DataError(f"{column!r} is missing or null")
    if not isinstance(value, str):
        raise DataError(f"{column!r} must be a string, not {_described(value)}")
    if not value.strip():
        raise DataError(f"{_own_name(record, column)!r} is empty: {value!r}; fill it in, or take the row out")
    check_encodable(value, repr(column))


def _own_name(record: Record, column: str) -> str:
    """What the file calls one of INSTRUCTION's columns, where that is one of `OTHER_NAMES`."""
    for names in OTHER_NAMES:
        for ours, name in zip((INSTRUCTION.prompt, "output"), names, strict=True):
            if column == ours and all(part in record for part in names) and record[name] == record[column]:
                return name
    return column


def _check_turns(turns: object, column: str) -> None:
    if turns is None:
        raise DataError(f"{column!r} is missing or null")
    if not isinstance(turns, list):
        raise DataError(f"{column!r} must be a list of messages, not {_described(turns)}")
    if not turns:
        raise DataError(f"{column!r} is empty: []")
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, Mapping):
            raise DataError(f"message {number} of {column!r} must be an object, not {_described(turn)}")
        if not isinstance(turn.get("role"), str):
            raise DataError(f"message {number} of {column!r} needs a 'role' string, not {_described(turn.get('role'))}")
        if turn.get("tool_calls"):
            _check_calls(turn["tool_calls"], f"message {number} of {column!r}")
        content = turn.get("content")
        # A turn that only calls tools has no text.
        if not isinstance(content, str) and not (content is None and turn.get("tool_calls")):
            raise DataError(f"message {number} of {column!r} needs a 'content' string, not {_described(content)}")
        check_encodable(turn["role"] + (content or ""), repr(column))


def check_encodable(text: str, what: str) -> None:
    """Half of a surrogate pair, as a cut emoji in JSON leaves it, is a string in Python and for nobody else."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{what} has half a surrogate pair at character {error.start}") from error


def _check_answer(turn: Mapping[str, Any], column: str) -> None:
    if turn["role"] != "assistant":
        raise DataError(f"the response in {column!r} must come from the role 'assistant', not {turn['role']!r}")
    if not (turn.get("content") or "").strip() and not turn.get("tool_calls"):
        raise DataError(f"the assistant's response in {column!r} is empty: {turn.get('content')!r}")


def _described(value: object) -> str:
    if value is None:
        return "null"
    return f"{type(value).__name__} {shown(value, 60)}"
