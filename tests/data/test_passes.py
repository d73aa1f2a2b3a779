"""How many passes over how many rows, where nobody says."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from reftune.data.passes import FEW_STEPS, passes


def test_by_the_number_of_rows() -> None:
    assert [passes(rows) for rows in (1, 2, 10, 16, 60, 104, 105, 10_000)] == [
        (1, 20),
        (1, 20),
        (5, 20),
        (8, 20),
        (8, 5),
        (8, 4),
        (8, 3),
        (8, 3),
    ]
    # two processes that accumulate twice: four batches make a step
    assert passes(60, steps_of=4) == (8, 20)
    assert passes(60, batch=2) == (2, 3)


@given(st.integers(1, 5000), st.integers(1, 64), st.integers(1, 8))
def test_enough_steps_or_the_most_passes(rows: int, batch: int, steps_of: int) -> None:
    taken, count = passes(rows, batch=batch, steps_of=steps_of)
    assert taken == batch and 3 <= count <= 20
    assert math.ceil(rows / (batch * steps_of)) * count >= FEW_STEPS or count == 20
