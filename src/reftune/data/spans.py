"""Marked spans of prompts: by markers in a text, which are taken out, or by character offsets of the row.

    {"prompt": "Is <<reft>>this<</reft>> right?", …}   or   {"prompt": "Is this right?", "spans": [[3, 7]], …}

Must not know: tokenizers, templates, positions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from reftune.data.kinds import Record
from reftune.errors import DataError
from reftune.values import shown

__all__ = ["MARKERS", "Markers", "Span", "check_markers", "has_marks", "taken_out", "with_markers", "without_markers"]

Markers = tuple[str, str]
Span = tuple[int, int]
# Before and behind a span.
MARKERS: Markers = ("<<reft>>", "<</reft>>")


def check_markers(markers: Markers) -> None:
    """Refuse markers that cannot be told apart, or are empty.

    Raises:
        DataError: they are so.
    """
    texts = isinstance(markers, (tuple, list)) and len(markers) == 2 and all(isinstance(m, str) and m for m in markers)
    if not texts or markers[0] in markers[1] or markers[1] in markers[0]:
        raise DataError(
            f"markers={markers!r} is not valid; it is two texts, none within the other, such as {MARKERS!r}"
        )


def has_marks(text: str, markers: Markers) -> bool:
    """Whether a marker is in the text."""
    return any(marker in text for marker in markers)


def taken_out(text: str, markers: Markers) -> tuple[str, list[Span]]:
    """The text without its markers, and the characters [start, stop) that lay between two of them.

    Raises:
        DataError: a span does not end, ends before it begins, or begins within another.
    """
    parts = re.split("(" + "|".join(map(re.escape, markers)) + ")", text)
    found: list[Span] = []
    kept, begun = "", None
    for part in parts:
        if part not in markers:
            kept += part
        elif (part == markers[0]) is (begun is not None):
            raise DataError(f"the marker {part!r} stands where no span can {'begin' if begun is not None else 'end'}")
        elif begun is None:
            begun = len(kept)
        else:
            found.append((begun, len(kept)))
            begun = None
    if begun is not None:
        raise DataError(f"the span at character {begun} has no end: {markers[1]!r} is missing")
    return kept, found


def with_markers(record: Record, markers: Markers) -> Record:
    """A row that has `spans` with markers in their place; any other row as it is.

    Raises:
        DataError: they are not pairs of offsets within the prompt, in order, or the prompt is no text.
    """
    spans: Any = record.get("spans")
    if spans is None:
        return record
    prompt = record.get("prompt")
    if not isinstance(prompt, str):
        raise DataError(
            f"'spans' are offsets of a 'prompt' that is text; in messages put {markers[0]!r} and {markers[1]!r}"
        )
    if has_marks(prompt, markers):
        raise DataError("the row has 'spans' and markers in its prompt; leave one of the two out")
    text, last = "", 0
    if not isinstance(spans, Sequence) or isinstance(spans, str):
        raise DataError(f"'spans' must be a list of [start, end], not {shown(spans, 60)}")
    for span in spans:
        is_pair = isinstance(span, Sequence) and len(span) == 2 and all(type(n) is int for n in span)
        if not is_pair or not last <= span[0] < span[1] <= len(prompt):
            raise DataError(
                f"'spans' has {shown(span, 60)}; valid are [start, end] of characters of the prompt (0 to "
                f"{len(prompt)}), in order, none within another"
            )
        text += prompt[last : span[0]] + markers[0] + prompt[span[0] : span[1]] + markers[1]
        last = span[1]
    return {**{key: value for key, value in record.items() if key != "spans"}, "prompt": text + prompt[last:]}


def without_markers(value: Any, markers: Markers) -> Any:
    """A row, or a part of one, with no marker in any of its texts."""
    if isinstance(value, str):
        return value.replace(markers[0], "").replace(markers[1], "")
    if isinstance(value, dict):
        return {key: without_markers(item, markers) for key, item in value.items()}
    return [without_markers(item, markers) for item in value] if isinstance(value, list) else value
