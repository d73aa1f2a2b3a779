"""MNLI, matched (Williams et al. 2018; GLUE): whether a premise implies a hypothesis, contradicts it, or neither."""

from __future__ import annotations

from .sentences import sentence_task, sources

__all__ = ["MNLI"]

MNLI = sentence_task(
    "mnli",
    "MNLI",
    sources=sources("MNLI", "mnli", hub_split="validation_matched"),
    template="Premise: {a}\nHypothesis: {b}\nDoes the hypothesis follow from the premise, yes, no or maybe?\nAnswer:",
    names=("entailment", "neutral", "contradiction"),
    words=("yes", "maybe", "no"),
    chance=1 / 3,
)
