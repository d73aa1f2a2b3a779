"""The form that the arithmetic sets share: Alpaca's prompt without input, a written-out solution, the last number.

As LLM-Adapters (Hu et al. 2023) published it and the ReFT paper used it.  The paper trains on math_10k, whose rows have
the fields of LLM-Adapters' test files; the training text is a row's `output`, unchanged.

Must not know: any one set.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from .alpaca import alpaca_prompt
from .base import Row, Source, Task

__all__ = ["arithmetic_task", "first_letter", "last_number", "near"]

TOLERANCE = 1e-3


def last_number(output: str) -> str | None:
    """The last number once all commas are gone; None without one.

    As published, in its odd cases too: percent and currency signs are not looked at, `3-2` ends in -2, `1/2` in 2, and
    a minus sign that is not the ASCII one is no sign.
    """
    numbers = re.findall(r"-?\d+\.?\d*", output.replace(",", ""))
    return numbers[-1].rstrip(".") if numbers else None


def first_letter(output: str) -> str | None:
    """The first capital A to E anywhere; None without one.

    As published, though it is rarely what was meant: the answer of `Bill rides 3 miles. The answer is (D).` is B.
    """
    found = re.search("[A-E]", output)
    return found.group() if found else None


def near(answer: str, reference: str) -> bool:
    """Two numbers that differ by at most a thousandth."""
    return abs(float(answer) - float(reference)) <= TOLERANCE


def arithmetic_task(
    name: str,
    title: str,
    *,
    sources: Mapping[str, Source],
    adapt: Callable[[Row], Row] = dict,
    extract: Callable[[str], str | None] = last_number,
    matches: Callable[[str, str], bool] = near,
    chance: float | None = None,
) -> Task:
    """`adapt` makes the fields `instruction`, `output`, `answer` of rows that have others."""
    return Task(
        name=name,
        title=title,
        sources=sources,
        prompt=lambda row: alpaca_prompt(adapt(row)["instruction"]),
        completion=lambda row: solution(adapt(row)),
        reference=lambda row: str(adapt(row)["answer"]).strip(),
        extract=extract,
        matches=matches,
        generation={"max_new_tokens": 512},
        chance=chance,
    )


def solution(row: Row) -> str:
    """The row's own, where it has one: the outputs of the mawps test are empty."""
    return row.get("output") or f"The answer is {row['answer']}."
