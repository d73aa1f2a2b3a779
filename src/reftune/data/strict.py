"""JSON that says one thing: what else `json` would raise, let pass or guess is a `ValueError` that says what.

Must not know: records, files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["from_text", "parse_json", "without_nulls"]


def parse_json(text: str, start: int | None = None) -> Any:
    """The value that the text is; with `start` (the value that begins there, where it ends).

    Raises:
        ValueError: it is not JSON (a `JSONDecodeError`), names a key of an object twice, has a number too long to be
            read, or is nested too deeply.
    """
    try:
        return _DECODER.decode(text) if start is None else _DECODER.raw_decode(text, start)
    except RecursionError as error:
        raise ValueError("lists or objects are nested too deeply to be read") from error
    except ValueError as error:
        if "int_max_str_digits" in str(error):
            raise ValueError("a number has more digits than can be read; write it as a text, in quotes") from error
        raise


def from_text(value: Any) -> Any:
    """A text is the JSON in it, as columns of tables and calls of tools have it; anything else is itself.

    Raises:
        ValueError: the text is not JSON.
    """
    return parse_json(value) if isinstance(value, str) else value


def without_nulls(value: Any) -> Any:
    """The value without keys that have none, at any depth: a table gives each row the keys of all the others."""
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, (list, tuple)) else value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r:.60} is there twice in one object; only one of them can be meant")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object)
