"""MRPC (Dolan and Brockett 2005; GLUE): whether two sentences of the news say the same."""

from __future__ import annotations

from .sentences import sentence_task, sources

__all__ = ["MRPC"]

MRPC = sentence_task(
    "mrpc",
    "MRPC",
    sources=sources("MRPC", "mrpc"),
    template="Sentence 1: {a}\nSentence 2: {b}\nDo the two sentences mean the same, yes or no?\nAnswer:",
    names=("not_equivalent", "equivalent"),
    words=("no", "yes"),
    chance=1 / 2,
)
