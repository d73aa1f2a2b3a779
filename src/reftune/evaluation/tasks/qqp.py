"""QQP (Quora 2017; GLUE): whether two questions of a forum ask the same."""

from __future__ import annotations

from .sentences import sentence_task, sources

__all__ = ["QQP"]

QQP = sentence_task(
    "qqp",
    "QQP",
    sources=sources("QQP", "qqp"),
    template="Question 1: {a}\nQuestion 2: {b}\nDo the two questions ask the same, yes or no?\nAnswer:",
    names=("not_duplicate", "duplicate"),
    words=("no", "yes"),
    chance=1 / 2,
)
