"""How an adapter's prompts were written, so that a bare question can be put the same way at generation.

Must not know: models, files' formats.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from reftune.data.kinds import INSTRUCTION, MESSAGES, check_record, is_conversation
from reftune.errors import DataError
from reftune.files import write_text

__all__ = ["STYLE_FILE", "PromptStyle"]

STYLE_FILE = "reftune.json"
STYLES = ("messages", "instruction", "prompt")


@dataclass(frozen=True)
class PromptStyle:
    """`messages`: a user turn in the chat template; `instruction`: the Alpaca template; `prompt`: the bare text."""

    style: str
    system: str | None = None
    """A system turn that all training rows began with."""

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise DataError(f"prompt style {self.style!r} is unknown; valid are {', '.join(STYLES)}")

    def record(self, text: str) -> dict[str, Any]:
        """The record to generate from for one question or text."""
        if self.style == "instruction":
            return {"instruction": text}
        if self.style == "prompt":
            return {"prompt": text}
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return {"messages": [*system, {"role": "user", "content": text}]}

    @classmethod
    def of_records(cls, records: Iterable[Mapping[str, Any]]) -> PromptStyle:
        """The style of training records; a system turn counts if all of them have the same."""
        systems: set[str | None] = set()
        styles: set[str] = set()
        for record in records:
            style, turns = _style_and_turns(record)
            styles.add(style)
            first = turns[0] if turns else {}
            systems.add(first.get("content") if first.get("role") == "system" else None)
        style = styles.pop() if len(styles) == 1 else "messages"
        return cls(style, systems.pop() if len(systems) == 1 else None)

    @classmethod
    def read(cls, folder: str | Path) -> PromptStyle | None:
        """What `write` wrote into an adapter's folder, None if there is nothing."""
        path = Path(folder) / STYLE_FILE
        if not path.is_file():
            return None
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (TypeError, ValueError) as error:
            raise DataError(f"{path} cannot be read: {error}") from error

    def write(self, folder: str | Path) -> None:
        """Put the style beside the adapter."""
        write_text(Path(folder) / STYLE_FILE, json.dumps(asdict(self), ensure_ascii=False) + "\n")


def _style_and_turns(record: Mapping[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    kind = check_record(dict(record), need_response=False)
    if kind is INSTRUCTION:
        return "instruction", []
    if kind is MESSAGES:
        return "messages", record["messages"]
    if is_conversation(record["prompt"]):
        return "messages", record["prompt"]
    return "prompt", []
