"""Numbers as people read them."""

from __future__ import annotations

import pytest

from reftune.reporting.numbers import between, count, points, significant, size_unit, time_unit


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (0.0039, "0.00390"),
        (0.205678, "0.206"),
        (9.996, "10.0"),
        (99.96, "100"),
        (1234.5, "1,234"),
        (134515008, "134,515,008"),
        (-0.5, "−0.500"),
    ],
)
def test_significant_digits(value: float, shown: str) -> None:
    assert significant(value) == shown


def test_decimals_can_be_bounded() -> None:
    assert [significant(value, most=2) for value in (0.0707, 0.589, 31.24, 0.001, -0.001)] == [
        "0.07",
        "0.59",
        "31.2",
        "0.00",
        "0.00",
    ]


def test_points_have_one_decimal_and_no_negative_zero() -> None:
    assert [points(value) for value in (0.8751, 1.0, -0.05, -0.0001, None)] == ["87.5", "100.0", "−5.0", "0.0", "–"]


def test_ranges_only_where_they_are_seen() -> None:
    assert between([276_720, 276_720], count) == "276,720"
    assert between([2, 1, None], count) == "1 to 2"
    assert between([None], count) == "–"
    assert between([1.0001, 1.0002], significant) == "1.00"


def test_a_column_has_the_unit_of_its_largest_value() -> None:
    assert [time_unit([value]).name for value in (179.0, 181.0, 11_000.0, None)] == ["s", "min", "h", "s"]
    assert time_unit([30.0, 600.0]).show(30.0) == "0.50"
    assert [size_unit([value]).name for value in (9e5, 5e8, 3e10)] == ["kB", "MB", "GB"]
    assert size_unit([538e6]).show(1_106_880) == "1.11"
    assert size_unit([]).show(None) == "–"
