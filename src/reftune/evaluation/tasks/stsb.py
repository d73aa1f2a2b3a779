"""STS-B (Cer et al. 2017; GLUE): how alike two sentences are, from 0 to 5.  Scored by Pearson correlation.

As text the number is taught with one decimal; scores are computed with all of the reference's.
"""

from __future__ import annotations

import re

from ..scores import PEARSON
from .base import Classes, Row, Task
from .sentences import sources, texts, value

__all__ = ["STSB"]

LOWEST, HIGHEST = 0.0, 5.0
ROUNDING = 0.05 + 1e-9
NUMBER = re.compile(r"\W*?(-?(?:\d[\d,]*(?:\.\d+)?|\.\d+))(?!\w|\.\d)")


def prompt(row: Row) -> dict[str, str]:
    a, b = texts(row)
    question = "How similar in meaning are the two sentences, from 0.0 (not at all) to 5.0 (the same)?"
    return {"prompt": f"Sentence 1: {a}\nSentence 2: {b}\n{question}\nAnswer:"}


def extract(output: str) -> str | None:
    """The number that an output begins with, if it lies between 0 and 5; else None."""
    found = NUMBER.match(output.replace("\N{MINUS SIGN}", "-"))
    if found is None:
        return None
    number = float(found.group(1).replace(",", ""))
    return str(number) if LOWEST <= number <= HIGHEST else None


def numbers(answer: str | None, reference: str) -> tuple[float, float]:
    """Both as numbers.  An output without one counts as the end of the scale that is farther from the truth."""
    truth = float(reference)
    farther = LOWEST if truth > (LOWEST + HIGHEST) / 2 else HIGHEST
    return farther if answer is None else float(answer), truth


STSB = Task(
    name="stsb",
    title="STS-B",
    sources=sources("STS-B", "stsb"),
    prompt=prompt,
    completion=lambda row: f" {float(value(row)):.1f}",
    reference=lambda row: str(float(value(row))),
    extract=extract,
    matches=lambda answer, reference: abs(float(answer) - float(reference)) <= ROUNDING,
    metric=PEARSON,
    numbers=numbers,
    generation={"max_new_tokens": 6},
    classes=Classes(texts=texts, label=lambda row: float(value(row))),
    chance=0.0,
)
