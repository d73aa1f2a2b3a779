"""RTE (Dagan et al. 2006 and later rounds; GLUE): whether a text implies a sentence."""

from __future__ import annotations

from .sentences import sentence_task, sources

__all__ = ["RTE"]

RTE = sentence_task(
    "rte",
    "RTE",
    sources=sources("RTE", "rte"),
    template="Text: {a}\nStatement: {b}\nDoes the statement follow from the text, yes or no?\nAnswer:",
    names=("entailment", "not_entailment"),
    words=("yes", "no"),
    chance=1 / 2,
)
