"""Training files, row by row: what cannot be trained on is told by the file and the line that the client knows.

Must not know: the database, HTTP, models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...data.kinds import check_record
from ...data.records import Rows, read_records, read_rows
from ...errors import DataError
from ..pieces import breathe

__all__ = ["preferences", "read_file", "told_by_name"]

# OpenAI's columns of preferences, and TRL's.
OURS = ("input", "preferred_output", "non_preferred_output")
TRLS = ("prompt", "chosen", "rejected")


def read_file(path: Path, filename: str, *, dpo: bool, most: int) -> Rows:
    """The rows of an uploaded file, each seen to be usable, as far as that is known without a tokenizer.

    Raises:
        DataError: a row is not; the message has the client's name of the file, and the line.
    """
    try:
        rows = preferences(path) if dpo else read_records(str(path))
    except DataError as error:
        raise DataError(told_by_name(str(error), path, filename)) from error
    if len(rows) > most:
        raise DataError(f"{filename}: {len(rows)} rows are more than the {most} that this server takes")
    return rows


def told_by_name(message: str, path: Path, filename: str) -> str:
    """A message that has the path of a file, with the client's name for it."""
    return message.replace(str(path), filename)


def preferences(path: Path) -> Rows:
    """Rows of prompt, chosen and rejected answer, all three conversations.

    Raises:
        DataError: there are none, or one is not usable.
    """
    rows = read_rows(path)
    if not len(rows):
        raise DataError(f"{rows.name}: no rows")
    return Rows(rows.map(_preference), rows.name, rows.unit, rows.numbers)


def _preference(record: Any) -> dict[str, Any]:
    breathe()
    if not isinstance(record, Mapping):
        raise DataError(f"a row must be an object of columns, not {type(record).__name__}")
    if record.get("input") is not None:
        prompt, answers = _prompt(record["input"]), [record.get(name) for name in OURS[1:]]
        names: Sequence[str] = OURS[1:]
    elif all(record.get(name) is not None for name in TRLS):
        prompt, answers, names = _prompt(record["prompt"]), [record["chosen"], record["rejected"]], TRLS[1:]
    else:
        found = ", ".join(sorted(map(str, record))) or "none"
        raise DataError(f"columns found: {found}; a row of preferences needs {', '.join(OURS)}, or {', '.join(TRLS)}")
    made: dict[str, Any] = {"prompt": prompt}
    for key, name, answer in zip(TRLS[1:], names, answers, strict=True):
        made[key] = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
        try:
            check_record({"prompt": prompt, "completion": made[key]})
        except DataError as error:
            raise DataError(str(error).replace("'completion'", repr(name))) from error
    if made["chosen"] == made["rejected"]:
        raise DataError(f"{names[0]!r} and {names[1]!r} are the same: nothing can be learnt from that")
    return made


def _prompt(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        if value.get("tools"):
            raise DataError("'tools' of 'input' are not trained on by preferences; leave them out")
        value = value.get("messages")
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if not isinstance(value, list):
        raise DataError("'input' must be an object with 'messages', a list of messages or a text")
    return value
