"""Rows of a file of records: what is asked, what is right; parted by their prompts; and what is odd about them.

Must not know: how answers are scored, models.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ...data.kinds import COLUMNS, EXTRAS, INSTRUCTION, MESSAGES, Record, check_record, is_conversation
from ...data.records import read_records
from ...errors import DataError

__all__ = ["OwnRow", "compared", "inside", "own_row", "part", "read_own"]


@dataclass(frozen=True)
class OwnRow:
    """A record with its place in the file."""

    place: int
    record: dict[str, Any]
    asked: dict[str, Any]
    """The record without its response."""
    answer: str

    @cached_property
    def key(self) -> str:
        """Of the prompt: the same for prompts that differ in white space only."""
        return json.dumps(_squeezed(self.asked), sort_keys=True, ensure_ascii=False, default=str)


def read_own(file: str, *, answer: str | None = None, trains: bool = False) -> list[OwnRow]:
    """The rows of a file; `answer` is the column of the right answer, which else is the response.

    Raises:
        DataError: no such file, no rows, or rows that lack something; with the file, the row, and how many more.
    """
    need_response = trains or answer is None
    try:
        read = read_records(Path(file), need_response=need_response)
    except DataError as error:
        hint = _hint(file, answer, str(error))
        if not hint:
            raise
        raise DataError(f"{error}{hint}") from error
    have = {name for record in read.records for name in record}
    if answer is not None and answer not in have:
        raise DataError(f"{read.name}: no row has the column {answer!r} for the answer; there are {_listed(have)}")
    found = read.map(lambda record: own_row(record, answer, need_response))
    places = range(1, len(found) + 1) if read.numbers is None else read.numbers
    return [replace(row, place=place) for row, place in zip(found, places, strict=True)]


def _hint(file: str, answer: str | None, error: str) -> str:
    """Where there are prompts and no answers, another column may hold them."""
    if answer is not None or "is missing or null" not in error:
        return ""
    try:
        records = read_records(Path(file), need_response=False).records
    except DataError:
        return ""
    more = {str(name) for record in records for name, value in record.items() if value is not None}
    more -= COLUMNS - set(EXTRAS)
    return f"; if the answers are in another column ({_listed(more)}), name it: --answer COLUMN" if more else ""


def _listed(names: Any) -> str:
    return ", ".join(sorted(map(repr, names)))


def own_row(record: Record, answer: str | None = None, need_response: bool = True) -> OwnRow:
    """A record by what is asked and what is right: its response, or the column `answer`.

    Raises:
        DataError: it is none, or its response is more than one text.
    """
    kind = check_record(record, need_response=need_response)
    kept = {name: value for name, value in record.items() if value is not None}
    if kind is MESSAGES:
        turns = list(record["messages"])
        answered = turns[-1]["role"] == "assistant"
        asked = {**kept, "messages": turns[:-1] if answered else turns}
        response: Any = turns[-1:] if answered else None
    else:
        name = "output" if kind is INSTRUCTION else "completion"
        asked = {key: value for key, value in kept.items() if key != name}
        response = record.get(name)
    names = {*kind.required, *kind.optional, *EXTRAS}
    asked = {key: value for key, value in asked.items() if key in names}
    right = _text_of(response) if answer is None else _value(record.get(answer), answer)
    # its place is known to whoever reads all rows
    return OwnRow(0, kept, asked, right)


def _text_of(response: Any) -> str:
    if not is_conversation(response):
        return str(response)
    if len(response) > 1 or response[0].get("tool_calls"):
        what = "calls tools" if len(response) == 1 else f"is {len(response)} turns"
        raise DataError(f"the answer {what}, and only one text can be compared; leave the row out of what is scored")
    return str(response[0]["content"])


def _value(value: Any, column: str) -> str:
    if not isinstance(value, (str, int, float)) or (isinstance(value, float) and not math.isfinite(value)):
        raise DataError(f"the answer in {column!r} must be a text or a number, not {value!r:.60}")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if not str(value).strip():
        raise DataError(f"the answer in {column!r} is empty")
    return str(value)


def _squeezed(value: Any) -> Any:
    if isinstance(value, str):
        return " ".join(value.split())
    if isinstance(value, Mapping):
        return {key: _squeezed(item) for key, item in value.items()}
    return [_squeezed(item) for item in value] if isinstance(value, (list, tuple)) else value


def part(rows: Sequence[OwnRow], split: float, name: str) -> tuple[list[OwnRow], list[OwnRow]]:
    """(to train on, to score): a row is scored if the hash of its prompt, as a number from 0 to 1, is below `split`.

    So it is the same tomorrow, in whatever order and beside whatever other rows, and no prompt is in both.

    Raises:
        DataError: one of the two is empty.
    """
    test = [row for row in rows if _fraction(row.key) < split]
    train = [row for row in rows if _fraction(row.key) >= split]
    for what, found in (("train on", train), ("score", test)):
        if not found:
            raise DataError(
                f"{name}: split={split:g} of {len({row.key for row in rows}):,} different prompts leaves no rows to "
                f"{what}; use another split, or files of your own to train on and to score"
            )
    return train, test


def _fraction(key: str) -> float:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def inside(rows: Sequence[OwnRow], name: str) -> list[str]:
    """What is odd about rows to score: prompts that come again, with the same answer or another."""
    answers = _answers(rows)
    found: list[str] = []
    again = len(rows) - len(answers)
    if again:
        found.append(f"{name}: {_rows(again)} to score {'has' if again == 1 else 'have'} a prompt that came before.")
    several = sum(len(given) > 1 for given in answers.values())
    if several:
        found.append(
            f"{name}: {several:,} {'prompt has' if several == 1 else 'prompts have'} more than one right answer, so "
            "not all rows can be got right."
        )
    return found


def compared(train: Sequence[OwnRow], test: Sequence[OwnRow], names: tuple[str, str]) -> list[str]:
    """What is odd about rows to train on beside rows to score, counted.

    Raises:
        DataError: all rows to score are rows to train on.
    """
    answers = _answers(train)
    shared = [row for row in test if row.key in answers]
    same = [row for row in shared if _squeezed(row.answer) in answers[row.key]]
    if len(same) == len(test):
        raise DataError(
            f"all {len(test):,} rows of {names[1]} are in {names[0]} too: a score on rows that were learnt tells "
            "nothing; keep them apart, or give one file and --split 0.2"
        )
    if not shared:
        return []
    return [
        f"{len(shared):,} of {len(test):,} rows of {names[1]} have a prompt that is in {names[0]} too, {len(same):,} "
        "of them with the same answer: what is learnt by heart counts there."
    ]


def _answers(rows: Sequence[OwnRow]) -> dict[str, set[str]]:
    """The right answers to each prompt, without regard to white space."""
    found: dict[str, set[str]] = {}
    for row in rows:
        found.setdefault(row.key, set()).add(_squeezed(row.answer))
    return found


def only_tested(train: Sequence[str], test: Sequence[str], name: str) -> list[str]:
    """Labels that cannot be learnt."""
    counts = Counter(label for label in test if label not in set(train))
    return [
        f"{name}: no row to train on has the label {label!r}, so its {_rows(count)} to score can hardly be got right."
        for label, count in sorted(counts.items())
    ]


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"
