"""Labels of points: apart from each other, near to their points, inside the picture."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reftune.comparison.report.labels import Box, apart, clashes, leader, place, stack

AREA = Box(40, 36, 334, 262)


def inside(box: Box, area: Box = AREA) -> bool:
    return box.left >= area.left and box.right <= area.right and box.bottom >= area.bottom and box.top <= area.top


@pytest.mark.parametrize("seed", range(8))
def test_fourteen_labels_find_places_of_their_own(seed: int) -> None:
    rng = random.Random(seed)
    # most points close together, as methods of one kind are
    points = [(rng.gauss(150, 30), rng.gauss(180, 15)) for _ in range(9)]
    points += [(rng.uniform(60, 310), rng.uniform(60, 240)) for _ in range(5)]
    sizes = [(rng.uniform(30, 110), 11.0) for _ in points]
    marks = [Box(x - 3, y - 3, x + 3, y + 3) for x, y in points]
    boxes = place(points, sizes, AREA, marks=marks)
    assert boxes == place(points, sizes, AREA, marks=marks)
    assert all(inside(box) for box in boxes)
    assert [round(box.right - box.left, 6) for box in boxes] == [round(width, 6) for width, _ in sizes]
    assert not any(a.shared(b) for a, b in itertools.combinations(boxes, 2))


def test_a_lonely_label_stands_beside_its_point() -> None:
    (box,) = place([(100, 100)], [(50, 10)], AREA, marks=[Box(97, 97, 103, 103)])
    (x0, y0), (x1, y1) = leader((100, 100), box)
    assert 3 < ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5 < 8
    assert clashes([box], [Box(97, 97, 103, 103)]) == 0


def test_a_label_that_fits_nowhere_stays_in_the_picture_if_it_can() -> None:
    (box,) = place([(200, 100)], [(290, 10)], AREA)
    assert inside(box)


def test_clashes_are_counted() -> None:
    one, two, far = Box(0, 0, 10, 10), Box(5, 5, 15, 15), Box(50, 50, 60, 60)
    assert clashes([one, two, far], []) == 2
    assert clashes([one, far], [Box(55, 55, 56, 56)]) == 1
    assert clashes([one, Box(10, 0, 20, 10)], []) == 0


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(1, 12)), min_size=1, max_size=8))
def test_things_in_a_row_do_not_overlap(things: list[tuple[float, float]]) -> None:
    wanted = sorted(middle for middle, _ in things)
    sizes = [size for _, size in things]
    found = apart(wanted, sizes, 0, 100)
    assert all(a + s / 2 <= b - t / 2 + 1e-6 for (a, s), (b, t) in itertools.pairwise(zip(found, sizes, strict=True)))
    assert found[0] - sizes[0] / 2 >= -1e-6 and found[-1] + sizes[-1] / 2 <= 100 + 1e-6


def test_things_that_do_not_touch_stay_where_they_are() -> None:
    assert apart([10, 30, 50], [10, 10, 10], 0, 100) == [10, 30, 50]
    # two that want the same place share the way
    assert apart([50, 50], [10, 10], 0, 100) == [45, 55]


def test_a_stack_keeps_the_order_of_its_points() -> None:
    points = [(10.0, 50.0), (10.0, 52.0), (10.0, 20.0)]
    boxes = stack(points, [(30.0, 10.0)] * 3, Box(0, 0, 100, 100), left=24)
    assert boxes[2].top <= boxes[0].bottom and boxes[0].top <= boxes[1].bottom
    assert {box.left for box in boxes} == {24}
