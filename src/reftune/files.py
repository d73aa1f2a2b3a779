"""Files that are written whole or not at all, lists that grow a line at a time, and what hinders that in one line.

Must not know: what is in them.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from .errors import ReftuneError

__all__ = [
    "append_line",
    "check_writable",
    "existing_part",
    "key_of",
    "read_json",
    "read_lines",
    "sync",
    "told",
    "whole",
    "whole_lines",
    "write_json",
    "write_lines",
    "write_text",
]

# A disk that is full may have room for a few bytes.
PROBE_BYTES = 1 << 20


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Another name beside `path` to write to: in the end it takes the place of `path`, after an error it is gone.

    Raises:
        ReftuneError: the disk is full, the folder is read-only, and the like.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with told(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield part
            sync(part)
            os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise


def write_text(path: Path, text: str) -> None:
    """Written under another name, then renamed.

    Raises:
        ReftuneError: as `whole`.
    """
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")


def sync(path: Path) -> None:
    """Have the content on the disk, so that it outlives a loss of power, and so that what a quota refuses is told."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Errors of whatever writes `path` inside become one line that names it and the cause.

    torch says "unexpected pos 576 vs 534" of a full disk: what is no error of files is looked into by writing one more,
    and where that works it is left as it is.

    Raises:
        ReftuneError: files cannot be written there.
    """
    try:
        yield
    except ReftuneError:
        raise
    except Exception as error:
        why = error.strerror if isinstance(error, OSError) else _hindrance(existing_part(path.parent))
        if why is None and isinstance(error, (OSError, SafetensorError)):
            why = str(error)
        if why is None:
            raise
        raise ReftuneError(f"{str(path)!r} cannot be written: {why}") from error


def check_writable(folder: Path) -> None:
    """Make sure, before anything takes time, that a folder that may not be there yet can be written to.

    Raises:
        ReftuneError: it, or what it would be in, is a file, read-only, full, or somebody else's.
    """
    there = existing_part(folder)
    if not there.is_dir():
        raise ReftuneError(f"{str(folder)!r} cannot be written: {str(there)!r} is a file, not a folder; name another")
    why = _hindrance(there)
    if why is not None:
        raise ReftuneError(f"{str(folder)!r} cannot be written: {why}; mend that, or name another")


def existing_part(path: Path) -> Path:
    """The path itself, or the first above it that exists."""
    path = path.absolute()
    return next((part for part in (path, *path.parents) if os.path.lexists(part)), path)


def _hindrance(folder: Path) -> str | None:
    """Why no file can be written to a folder now, None if one can."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.strerror or str(error)
    return None


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
