"""Which tokens of a prompt are edited, in words and as marks on the tokens.

An adapter is what `/v1/reft_adapters` says of it: `sites` and, of each, its `layers`.

Must not know: HTTP, how positions are counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

from ...positions import Term, parse_positions, unit_slices
from ...values import ranges
from ..plans import Edit, Part, kinds_of_tokens, marks_of, plan, plan_of_tokens, ranges_of, sites_from_wire

__all__ = ["marked_tokens", "summary", "token_text"]

SPACES = ("Ġ", "▁")
BYTES = {sign: byte for byte, sign in bytes_to_unicode().items()}


def marked_tokens(
    tokens: Sequence[str], ids: Sequence[int], adapter: Mapping[str, Any], spans: Sequence[int] | None = None
) -> list[tuple[str, str | None]]:
    """Each token of a prompt, which has its id too, and what edits it; None where nothing does.

    `spans` says of each token whether the prompt marks it.
    """
    marks: list[str | None] = [None] * len(tokens)
    for edit in _edits(adapter, ids, spans):
        for i in range(len(tokens))[edit.start : edit.stop]:
            marks[i] = _described(edit.parts, adapter)
    return [(token_text(token), mark) for token, mark in zip(tokens, marks, strict=True)]


def summary(ids: Sequence[int], adapter: Mapping[str, Any], spans: Sequence[int] | None = None) -> str:
    """In a line, how many of a prompt's tokens are edited, and which of the answer are."""
    count, sites = len(ids), sites_from_wire(adapter["sites"])
    edited = sum(len(range(count)[edit.start : edit.stop]) for edit in _edits(adapter, ids, spans))

    def of_answer(holds: frozenset[Term]) -> list[Edit]:
        found = plan(sites, count, holds)
        return [e._replace(start=max(e.start, count)) for e in found if e.stop is None or e.stop > count]

    plain = of_answer(frozenset())
    words = [f"{_which(edit, count)} of the answer: {_described(edit.parts, adapter)}" for edit in plain]
    for holds in dict.fromkeys(kinds_of_tokens(sites).values()):
        if (other := of_answer(holds)) != plain:
            named = " and ".join(map(str, sorted(holds)))
            parts = [f"{_which(edit, count)} of the answer: {_described(edit.parts, adapter)}" for edit in other]
            words.append(f"of its tokens {named} {'; '.join(parts) or 'none'}")
    return f"{edited} of {count} prompt tokens are edited, and " + ("; ".join(words) or "none of the answer")


def _which(edit: Edit, count: int) -> str:
    """Tokens of an answer, counted from 1."""
    first, last = edit.start - count + 1, None if edit.stop is None else edit.stop - count
    if first == 1:
        return "all tokens" if last is None else f"the first {last} tokens"
    return f"the tokens from number {first} on" if last is None else f"the tokens number {first} to {last}"


def token_text(token: str) -> str:
    """A token as it reads.  Tokenizers have signs for spaces and, many of them, for all bytes."""
    if all(sign in BYTES for sign in token):
        # it may be a part of a character, or of a tokenizer without bytes
        with suppress(UnicodeDecodeError):
            token = bytes(BYTES[sign] for sign in token).decode()
    for sign in SPACES:
        token = token.replace(sign, " ")
    return token.replace("\n", "↵")


def _edits(adapter: Mapping[str, Any], ids: Sequence[int], spans: Sequence[int] | None) -> tuple[Edit, ...]:
    sites = sites_from_wire(adapter["sites"])
    return plan_of_tokens(sites, len(ids), 0, len(ids), lambda: ids, marks_of(sites, ids, ranges_of(spans)))


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
