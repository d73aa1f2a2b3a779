"""Positions as they are written, and what follows of them without a prompt: a text (``"f7+l7"``) is a `PositionSpec`.

Needs no torch, so that an adapter's files can be told of in a moment.

Must not know: models, interventions, adapters, tensors.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = [
    "PositionSpec",
    "Tie",
    "joint_span",
    "own_slots",
    "parse_positions",
    "scope_range",
    "unit_count",
    "unit_slices",
]

Scope = Literal["span", "prompt", "all", "response"]
Tie = Literal["all", "group", "none"]

GRAMMAR = "'f<p>', 'l<s>', 'f<p>+l<s>', 'prompt', 'all' or 'response'"
# More than any text has; every number takes room in every call.
MOST_TOKENS = 2**20


@dataclass(frozen=True)
class PositionSpec:
    """Positions as numbers: the first `first` and the last `last` prompt tokens, or a whole scope."""

    scope: Scope
    first: int = 0
    last: int = 0

    @property
    def count(self) -> int:
        """Number of slots P that a row has; 0 for whole scopes, which have no slots."""
        return self.first + self.last

    def __str__(self) -> str:
        if self.scope != "span":
            return self.scope
        return "+".join(f"{kind}{n}" for kind, n in (("f", self.first), ("l", self.last)) if n) or "f0"

    def overlaps(self, other: PositionSpec) -> bool:
        """Whether some prompt has a token that both edit (paper, Def. 3.2 asks for disjoint positions)."""
        if "all" in (self.scope, other.scope):
            return True
        if "response" in (self.scope, other.scope):
            return self.scope == other.scope
        if "prompt" in (self.scope, other.scope):
            return True
        return bool((self.first and other.first) or (self.last and other.last))


def parse_positions(text: str) -> PositionSpec:
    """``"f7+l7"`` → `PositionSpec("span", 7, 7)`.

    Grammar: `f<p>` the first p prompt tokens, `l<s>` the last s, `f<p>+l<s>` both, `prompt` every prompt token (so
    nothing at decode), `all` every token of prompt and response, `response` every token after the prompt.  Case and
    spaces do not matter; `str` of the result is the one way to write it.

    Raises:
        ValueError: the text is not of this form; the message quotes it.
    """
    if not isinstance(text, str):
        raise ValueError(f"positions={text!r} is not a text; valid are {GRAMMAR}")
    cleaned = text.replace(" ", "").lower()
    if cleaned == "prompt":
        return PositionSpec("prompt")
    if cleaned == "all":
        return PositionSpec("all")
    if cleaned == "response":
        return PositionSpec("response")
    match = re.fullmatch(r"(?:f(\d+))?(\+)?(?:l(\d+))?", cleaned, re.ASCII)
    if not cleaned or match is None or bool(match[2]) != bool(match[1] and match[3]):
        raise ValueError(f"positions={reprlib.repr(text)} cannot be read; valid are {GRAMMAR}, for example 'f7+l7'")
    digits = [(group or "").lstrip("0") or "0" for group in (match[1], match[3])]
    # Python refuses to read thousands of digits
    numbers = [int(number) if len(number) < 9 else MOST_TOKENS + 1 for number in digits]
    if max(numbers) > MOST_TOKENS:
        raise ValueError(
            f"positions={reprlib.repr(text)} names more than {MOST_TOKENS} tokens; 'prompt' edits every prompt token"
        )
    return PositionSpec("span", *numbers)


def unit_slices(spec: PositionSpec, tie: Tie) -> list[slice]:
    """Slots of a row that share one Φ, in the order in which the Φ of a layer are numbered.

    `all`: one Φ; `group`: one for the prefix, one for the suffix; `none`: one a position.
    """
    if spec.scope != "span" or tie == "all":
        return [slice(0, spec.count)]
    if tie == "group":
        halves = [slice(0, spec.first), slice(spec.first, spec.count)]
        return [half for half in halves if half.stop > half.start]
    return [slice(i, i + 1) for i in range(spec.count)]


def unit_count(spec: PositionSpec, tie: Tie) -> int:
    """How many slices `unit_slices` has, without making them."""
    if spec.scope != "span" or tie == "all":
        return 1
    return (spec.first > 0) + (spec.last > 0) if tie == "group" else spec.count


def joint_span(specs: Sequence[PositionSpec]) -> PositionSpec:
    """The span of all that edit one site together: on a short prompt, prefixes and suffixes give way to each other."""
    spans = [spec for spec in specs if spec.scope == "span"]
    return PositionSpec("span", max([0, *[s.first for s in spans]]), max([0, *[s.last for s in spans]]))


def own_slots(spec: PositionSpec, joint: PositionSpec) -> list[int]:
    """Which slots of `joint` are those of `spec`, in the order of its own."""
    return [*range(spec.first), *range(joint.count - spec.last, joint.count)]


def scope_range(spec: PositionSpec, length: int) -> tuple[int, int | None]:
    """Tokens [first, stop) that a whole scope edits of a prompt of `length` tokens and its response; None: no end."""
    if spec.scope == "prompt":
        return 0, length
    if spec.scope == "response":
        return length, None
    if spec.scope == "all":
        return 0, None
    raise ValueError(f"positions {spec} are no whole scope")
