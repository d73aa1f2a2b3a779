"""QNLI (from Rajpurkar et al. 2016; GLUE): whether a sentence holds the answer to a question."""

from __future__ import annotations

from .sentences import sentence_task, sources

__all__ = ["QNLI"]

QNLI = sentence_task(
    "qnli",
    "QNLI",
    sources=sources("QNLI", "qnli"),
    template="Question: {a}\nSentence: {b}\nDoes the sentence answer the question, yes or no?\nAnswer:",
    names=("entailment", "not_entailment"),
    words=("yes", "no"),
    chance=1 / 2,
)
