"""Numbers as people read them: points, counts, times, sizes; one unit for a whole column.

Must not know: results.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

__all__ = [
    "NONE",
    "Unit",
    "between",
    "count",
    "memory_unit",
    "p_value",
    "points",
    "significant",
    "size_unit",
    "time_unit",
]

NONE = "–"


@dataclass(frozen=True)
class Unit:
    """`name` is that of 1 / `factor`: seconds × factor = minutes."""

    name: str
    factor: float
    most: int = 9
    """decimals"""

    def show(self, value: float | None) -> str:
        return NONE if value is None else significant(value * self.factor, most=self.most)


def significant(value: float, digits: int = 3, *, most: int = 9) -> str:
    """With so many digits, never with an exponent, and with no fewer than the digits before the point.

    most: decimals.
    """
    if value == 0:
        return "0"
    decimals = min(most, max(0, digits - 1 - math.floor(math.log10(abs(value)))))
    rounded = round(value, decimals)
    # 9.996 has become 10.00, a digit too many
    if rounded:
        decimals = min(most, max(0, digits - 1 - math.floor(math.log10(abs(rounded)))))
    return _signed(f"{rounded:,.{decimals}f}")


def points(score: float | None) -> str:
    """A score, 1 for all right, in points of 100 as papers print them."""
    return NONE if score is None else _signed(f"{100 * score:.1f}")


def p_value(p: float) -> str:
    """How often chance alone would do something."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def count(value: float | None) -> str:
    return NONE if value is None else f"{value:,.0f}"


def between(values: Iterable[float | None], show: Callable[[float], str]) -> str:
    """One text if all values show the same, else the least and the largest."""
    known = [value for value in values if value is not None]
    if not known:
        return NONE
    low, high = show(min(known)), show(max(known))
    return low if low == high else f"{low} to {high}"


def time_unit(seconds: Sequence[float | None]) -> Unit:
    """Of a column: what its largest value is told in."""
    largest = max((value for value in seconds if value is not None), default=0)
    if largest < 180:
        return Unit("s", 1, 2)
    return Unit("min", 1 / 60, 2) if largest < 3 * 3600 else Unit("h", 1 / 3600, 2)


def size_unit(sizes: Sequence[float | None]) -> Unit:
    largest = max((value for value in sizes if value is not None), default=0)
    if largest < 1e6:
        return Unit("kB", 1e-3)
    return Unit("MB", 1e-6) if largest < 1e10 else Unit("GB", 1e-9)


def memory_unit(megabytes: Sequence[float | None]) -> Unit:
    largest = max((value for value in megabytes if value is not None), default=0)
    return Unit("MB", 1) if largest < 10_000 else Unit("GB", 1e-3)


def _signed(text: str) -> str:
    """A minus as wide as a plus, and none before a zero."""
    if text.startswith("-"):
        return "−" + text[1:] if text.strip("-0.,") else text[1:]
    return text
