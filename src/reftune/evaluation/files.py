"""Result files: whole or not at all, and lists that grow a line at a time.

Must not know: what is in them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import ReftuneError
from ..files import told, write_text

__all__ = ["append_line", "key_of", "read_json", "read_lines", "whole_lines", "write_json", "write_lines"]


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """What `write_json` wrote.

    Raises:
        ReftuneError: somebody else has written there.
    """
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ReftuneError(f"{str(path)!r} is damaged ({error}); delete it to have it made anew") from None


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """A JSON object a line."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def append_line(path: Path, row: Mapping[str, Any]) -> None:
    """Add one to the end, on a line of its own also where the last one was broken off."""
    with told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """What `append_line` wrote; a line that was broken off, be it amid a letter, is left out.  No file: nothing."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_bytes().split(b"\n"):
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def whole_lines(path: Path, name: str) -> list[dict[str, Any]]:
    """The lines that have a field of this name; the file is left without others, such as one that was broken off."""
    lines = [line for line in read_lines(path) if name in line]
    if path.is_file():
        write_lines(path, lines)
    return lines


def key_of(value: Any) -> str:
    """A name for settings: equal settings have the same, others another one."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
