"""Medians, and ratios with their spread.

Must not know: what the numbers are of.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """Median and quartiles; of fewer than four numbers the extremes."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Spread:
        if not numbers:
            raise ValueError("no numbers")
        if len(numbers) < 4:
            return cls(statistics.median(numbers), min(numbers), max(numbers))
        low, median, high = statistics.quantiles(numbers, n=4, method="inclusive")
        return cls(median, low, high)

    def text(self, digits: int = 3) -> str:
        """`1.23 (1.20–1.31)`, with so many significant digits."""
        return f"{rounded(self.median, digits)} ({rounded(self.low, digits)}–{rounded(self.high, digits)})"


def ratios(numbers: Sequence[float], to: Sequence[float]) -> Spread:
    """Of each round, then their spread: what slows the machine for a while slows both."""
    return Spread.of([a / b for a, b in zip(numbers, to, strict=True)])


def rounded(number: float, digits: int = 3) -> str:
    """To significant digits, without an exponent."""
    if number == 0:
        return "0"
    before = len(str(int(abs(number)))) if abs(number) >= 1 else 0
    if before == 0:
        # zeros behind the point are not significant
        leading = len(f"{abs(number):.12f}".split(".")[1]) - len(f"{abs(number):.12f}".split(".")[1].lstrip("0"))
        return f"{number:.{min(12, digits + leading)}f}"
    return f"{number:,.{max(0, digits - before)}f}"
