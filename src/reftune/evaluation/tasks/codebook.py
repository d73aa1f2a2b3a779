"""Codebook (ReFT paper, appendix F): prompts `RAND#ID0->`, `RAND#ID1->`, … that stand for words drawn from a book.

Every row of the source holds the whole book; the place of a row says which word it stands for.
"""

from __future__ import annotations

import random
import re
from dataclasses import replace
from functools import lru_cache

from .base import Row, Task
from .memorisation import BOOK

__all__ = ["CODEBOOK", "key"]

SEED = 0
# About as many as one rank-1 intervention of LLaMA-7B holds.
ENTRIES = 256


def key(index: int) -> str:
    """The prompt of an entry."""
    return f"RAND#ID{index}->"


@lru_cache(maxsize=1)
def words(text: str) -> tuple[str, ...]:
    """The words of a text in lower case, without punctuation, each once, in a random order."""
    found = sorted({re.sub(r"[^\w\s]", "", word.lower()) for word in text.split()} - {""})
    random.Random(SEED).shuffle(found)
    return tuple(found)


def word(row: Row) -> str:
    found = words(str(row["text"]))
    # a short text has fewer words than there are entries
    return found[int(row["id"]) % len(found)]


CODEBOOK = Task(
    name="codebook",
    title="Codebook",
    sources=dict.fromkeys(("train", "test"), replace(BOOK, copies=ENTRIES)),
    prompt=lambda row: {"prompt": key(int(row["id"]))},
    completion=word,
    reference=word,
    extract=lambda output: output.strip() or None,
    generation={"max_new_tokens": 10},
    chance=0.0,
)
