"""Memorisation (ReFT paper, appendix F): one prompt without a meaning, and the opening of *Alice in Wonderland*.

The score is the share of the opening that the output repeats before its first wrong letter, as in the published
notebook.  What one rank-1 edit holds, by layer and in tokens, is the business of `reftune memorise`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..scores import MEAN
from .base import Row, Source, Task

__all__ = ["BOOK", "MEMORISATION", "PROMPT", "same_start"]

PROMPT = "ALIC#ID1->"
BOOK = Source("memorisation/alice_in_wonderland.jsonl.gz")
CHARACTERS = 500


def opening(row: Row) -> str:
    return str(row["text"])[:CHARACTERS].rstrip()


def same_start(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many letters or tokens two sequences have in common before they differ."""
    shorter = min(len(one), len(other))
    return next((i for i in range(shorter) if one[i] != other[i]), shorter)


def share(answer: str | None, reference: str) -> tuple[float, float]:
    return same_start(answer or "", reference) / len(reference), 1.0


MEMORISATION = Task(
    name="memorisation",
    title="Alice",
    # there is nothing to generalise to: what is trained on is what is asked
    sources={"train": BOOK, "test": BOOK},
    prompt=lambda row: {"prompt": PROMPT},
    completion=opening,
    reference=opening,
    extract=lambda output: output,
    matches=lambda answer, reference: answer.startswith(reference),
    metric=MEAN,
    numbers=share,
    generation={"max_new_tokens": 256},
    chance=0.0,
)
