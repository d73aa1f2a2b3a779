"""How an adapter's prompts were written, so that a bare question can be put the same way at generation.

Must not know: models, files' formats.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from reftune.data.kinds import INSTRUCTION, MESSAGES, check_encodable, check_record, is_conversation
from reftune.data.strict import parse_json
from reftune.errors import DataError
from reftune.files import write_text

__all__ = ["STYLES", "STYLE_FILE", "PromptStyle", "write_styles"]

STYLE_FILE = "reftune.json"
STYLES = ("messages", "instruction", "prompt")
# of the file: a system turn has its place in it, and nothing else of length
LIMIT = 1 << 16
# in the description of a data set, where it goes with it through `select`, `shuffle`, `map` and the disk
NOTE = "reftune.json: "


@dataclass(frozen=True)
class PromptStyle:
    """`messages`: a user turn in the chat template; `instruction`: the Alpaca template; `prompt`: the bare text."""

    style: str
    system: str | None = None
    """A system turn that all training rows began with."""

    def __post_init__(self) -> None:
        if not isinstance(self.style, str) or self.style not in STYLES:
            raise DataError(f"style={self.style!r:.100} is not valid; use {', '.join(STYLES)}")
        if self.system is None:
            return
        if not isinstance(self.system, str):
            raise DataError(f"system={self.system!r:.100} is not valid; it is a text, or null")
        if self.style != "messages":
            raise DataError(f"system needs style='messages': prompts of the style {self.style!r} have no turns")
        check_encodable(self.system, "system")

    def record(self, text: str) -> dict[str, Any]:
        """The record to generate from for one question or text."""
        if self.style == "instruction":
            return {"instruction": text}
        if self.style == "prompt":
            return {"prompt": text}
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return {"messages": [*system, {"role": "user", "content": text}]}

    def conversation(self, messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The record to generate from for a chat: what servers ask.

        Prompts of the style `messages` get the system turn of training, unless the chat has one; others have no turns,
        so that only one question can be put.

        Raises:
            DataError: the chat has other turns than one question, and prompts of this style have no turns.
        """
        if self.style == "messages":
            has_system = any(message.get("role") == "system" for message in messages)
            system = [] if self.system is None or has_system else [{"role": "system", "content": self.system}]
            return {"messages": [*system, *map(dict, messages)]}
        if [message.get("role") for message in messages] != ["user"]:
            raise DataError(
                f"this adapter's prompts are of the style {self.style!r}, which has no turns: send one message "
                "of the role 'user', or use /v1/completions"
            )
        return self.record(messages[0]["content"])

    @classmethod
    def of_records(cls, records: Iterable[Mapping[str, Any]]) -> PromptStyle | None:
        """The style of training records, None if they differ; a system turn counts if all of them have the same."""
        return cls._common({cls.of_record(record) for record in records})

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> PromptStyle:
        """The style of one record."""
        style, turns = _style_and_turns(record)
        first = turns[0] if turns else {}
        return cls(style, first.get("content") if first.get("role") == "system" else None)

    @classmethod
    def of_dataset(cls, dataset: Any) -> PromptStyle | None:
        """The style of what `build_dataset` built, also behind `select` and its like; None if it is unknown."""
        description = getattr(getattr(dataset, "info", None), "description", None) or ""
        notes = [line.removeprefix(NOTE) for line in description.splitlines() if line.startswith(NOTE)]
        return cls._common({cls._parsed(note) for note in notes})

    @classmethod
    def _common(cls, found: set[PromptStyle]) -> PromptStyle | None:
        styles, systems = {one.style for one in found}, {one.system for one in found}
        if len(styles) != 1:
            return None
        return cls(styles.pop(), systems.pop() if len(systems) == 1 else None)

    @classmethod
    def read(cls, folder: str | Path) -> PromptStyle | None:
        """What `write` wrote into an adapter's folder, None if there is no such file.

        Raises:
            DataError: it cannot be read or says something else; the message names the file and the field.
        """
        path = Path(folder) / STYLE_FILE
        if not os.path.lexists(path):
            return None
        try:
            return cls._parsed(_content(path))
        except (ValueError, OSError, RecursionError) as error:
            raise DataError(
                f"{str(path)!r}, which says how the adapter's prompts were written, cannot be used: {error}; mend it, "
                "or remove it to choose by hand"
            ) from error

    @classmethod
    def _parsed(cls, content: str) -> PromptStyle:
        values: Any = parse_json(content)
        if not isinstance(values, dict):
            raise DataError(f'it holds {values!r:.100}, not an object such as {{"style": "prompt"}}')
        valid = [f.name for f in fields(cls)]
        if unknown := sorted(set(values) - set(valid)):
            raise DataError(f"unknown fields {', '.join(map(repr, unknown)):.100}; valid are {', '.join(valid)}")
        if "style" not in values:
            raise DataError(f"the field 'style' is missing; use {', '.join(STYLES)}")
        return cls(**values)

    @property
    def note(self) -> str:
        """What the description of a data set says of it."""
        return NOTE + json.dumps(asdict(self))

    def write(self, folder: str | Path) -> None:
        """Put the style beside the adapter."""
        write_text(Path(folder) / STYLE_FILE, json.dumps(asdict(self), ensure_ascii=False) + "\n")


def write_styles(configs: Mapping[str, Any], folder: str | Path) -> None:
    """Beside adapters that PEFT saved in a folder, each by its name; those of ReFT have it from their configuration."""
    for name, config in configs.items():
        place = Path(folder) / ("" if name == "default" else name)
        style = getattr(config, "prompt_style", None)
        if style is not None and (place / "adapter_config.json").is_file():
            style.write(place)


def _content(path: Path) -> str:
    if not path.is_file():
        raise DataError("it is not a file")
    if path.stat().st_size > LIMIT:
        raise DataError(f"it has more than {LIMIT} bytes")
    return path.read_text(encoding="utf-8-sig")


def _style_and_turns(record: Mapping[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    kind = check_record(dict(record), need_response=False)
    if kind is INSTRUCTION:
        return "instruction", []
    if kind is MESSAGES:
        return "messages", record["messages"]
    if is_conversation(record["prompt"]):
        return "messages", record["prompt"]
    return "prompt", []
