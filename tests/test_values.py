"""How values are shown."""

from __future__ import annotations

from reftune.values import ranges, shown


def test_ranges() -> None:
    assert ranges([5, 0, 1, 2, 9, 1]) == "0–2, 5, 9"
    assert ranges([]) == ""


def test_long_values_are_cut() -> None:
    assert shown("a" * 5, 4) == "'aaa..."
    assert shown(["a"]) == "['a']"
    assert shown(10**5000) == "<too large to be shown>"
