"""CoLA (Warstadt et al. 2019; GLUE): whether a sentence is acceptable English.  Scored by Matthews correlation."""

from __future__ import annotations

from ..scores import MATTHEWS
from .sentences import sentence_task, sources

__all__ = ["COLA"]

WORDS = ("no", "yes")


def numbers(answer: str | None, reference: str) -> tuple[float, float]:
    """Indices of the classes; -1, which the metric counts as the wrong class, for an output without an answer."""
    return -1.0 if answer is None else WORDS.index(answer), WORDS.index(reference)


COLA = sentence_task(
    "cola",
    "CoLA",
    sources=sources("CoLA", "cola"),
    template="Sentence: {a}\nIs this sentence acceptable English, yes or no?\nAnswer:",
    names=("unacceptable", "acceptable"),
    words=WORDS,
    metric=MATTHEWS,
    numbers=numbers,
    chance=0.0,
)
