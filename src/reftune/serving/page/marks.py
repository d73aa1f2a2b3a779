"""Which tokens of a prompt are edited, in words and as marks on the tokens.

An adapter is what `/v1/reft_adapters` says of it: `sites` and, of each, its `layers`.

Must not know: HTTP, Gradio, how positions are counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

from ...positions import parse_positions, unit_slices
from ...values import ranges
from ..plans import Edit, Part, plan, sites_from_wire

__all__ = ["marked_tokens", "summary", "token_text"]

SPACES = ("Ġ", "▁")
BYTES = {sign: byte for byte, sign in bytes_to_unicode().items()}


def marked_tokens(tokens: Sequence[str], adapter: Mapping[str, Any]) -> list[tuple[str, str | None]]:
    """Each token of a prompt, and what edits it; None where nothing does."""
    marks: list[str | None] = [None] * len(tokens)
    for edit in _edits(adapter, len(tokens)):
        for i in range(len(tokens))[edit.start : edit.stop]:
            marks[i] = _described(edit.parts, adapter)
    return [(token_text(token), mark) for token, mark in zip(tokens, marks, strict=True)]


def summary(count: int, adapter: Mapping[str, Any]) -> str:
    """In a line, how many of the `count` tokens are edited, and whether those of the answer are."""
    edits = _edits(adapter, count)
    edited = sum(len(range(count)[edit.start : edit.stop]) for edit in edits)
    answer = next((_described(edit.parts, adapter) for edit in edits if edit.stop is None), None)
    return f"{edited} of {count} prompt tokens are edited, " + (
        "and none of the answer" if answer is None else f"and all tokens of the answer: {answer}"
    )


def token_text(token: str) -> str:
    """A token as it reads.  Tokenizers have signs for spaces and, many of them, for all bytes."""
    if all(sign in BYTES for sign in token):
        # it may be a part of a character, or of a tokenizer without bytes
        with suppress(UnicodeDecodeError):
            token = bytes(BYTES[sign] for sign in token).decode()
    for sign in SPACES:
        token = token.replace(sign, " ")
    return token.replace("\n", "↵")


def _edits(adapter: Mapping[str, Any], count: int) -> tuple[Edit, ...]:
    return plan(sites_from_wire(adapter["sites"]), count)


def _described(parts: Iterable[Part], adapter: Mapping[str, Any]) -> str:
    """Positions, layers and Φ of each group among the parts."""
    sites = sites_from_wire(adapter["sites"])
    found: dict[tuple[int, str, str, int], set[int]] = {}
    for part in parts:
        text, tie = next((text, tie) for group, text, tie in sites[part.site] if group == part.group)
        found.setdefault((part.group, text, tie, part.unit), set()).add(part.site)
    words = []
    for (_, text, tie, unit), at in sorted(found.items()):
        units = len(unit_slices(parse_positions(text), tie))  # type: ignore[arg-type]
        which = f" (Φ {unit + 1} of {units})" if units > 1 else ""
        layers = ranges(layer for site in at for layer in adapter["layers"][site])
        words.append(f"{text}{which}, layers {layers}")
    return "; ".join(words)
