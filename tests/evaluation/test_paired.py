"""Two models on the same rows: tests beside those of scipy, and intervals that hold what they should."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from reftune.evaluation.paired import Answers, mcnemar, paired
from reftune.evaluation.scores import ACCURACY, MATTHEWS, ROUGE_L


def right(*rows: bool) -> Answers:
    return {i: (float(row), 1.0) for i, row in enumerate(rows)}


def test_mcnemar_is_the_binomial_test_of_the_rows_that_differ() -> None:
    for one in range(9):
        for other in range(9):
            wanted = binomtest(one, one + other).pvalue if one + other else 1.0
            assert mcnemar(one, other) == pytest.approx(wanted)


def test_right_and_wrong_rows_are_counted() -> None:
    found = paired(ACCURACY, [right(*[True] * 8, False, False)], [right(*[False] * 7, True, True, False)])
    assert found is not None
    assert (found.rows, found.only_first, found.only_second) == (10, 7, 1)
    assert found.difference == pytest.approx(0.6) and found.p == pytest.approx(binomtest(1, 8).pvalue)
    assert not found.told_apart
    same = paired(ACCURACY, [right(True, False)], [right(True, False)])
    assert same is not None and same.p == 1 and same.difference == same.low == same.high == 0


def test_classes_are_right_where_they_are_the_reference() -> None:
    first: Answers = {0: (2, 2), 1: (0, 0), 2: (1, 0)}
    found = paired(ACCURACY, [first], [{0: (1, 2), 1: (0, 0), 2: (0, 0)}])
    assert found is not None and (found.only_first, found.only_second) == (1, 1)


def test_other_scores_have_an_interval_of_the_difference() -> None:
    rng = np.random.default_rng(0)
    base = rng.uniform(0, 0.5, 200)
    better: Answers = {i: (value + 0.1, 1.0) for i, value in enumerate(base)}
    found = paired(ROUGE_L, [better], [{i: (value, 1.0) for i, value in enumerate(base)}])
    # each row is better by the same, however far the rows lie apart
    assert found is not None and found.low == pytest.approx(0.1) and found.high == pytest.approx(0.1)
    assert found.p is None and found.told_apart
    noise: Answers = {i: (value + rng.normal(0, 0.1), 1.0) for i, value in enumerate(base)}
    again = paired(ROUGE_L, [noise], [{i: (value, 1.0) for i, value in enumerate(base)}])
    assert again is not None and again.low < again.difference < again.high and 0.02 < again.high - again.low < 0.04


def test_several_trainings_are_averaged_and_need_not_be_as_many() -> None:
    found = paired(ACCURACY, [right(True, True, False), right(True, False, False)], [right(False, False, False)])
    assert found is not None and found.difference == pytest.approx(0.5) and found.p is None


def test_rows_of_one_side_only_are_left_out_and_halves_differ_by_seed() -> None:
    first: list[Answers] = [{0: (1, 1), 1: (0, 0)}, {2: (1, 1), 3: (0, 1)}]
    second: list[Answers] = [{0: (0, 1), 1: (0, 0)}, {2: (1, 1), 3: (1, 1), 9: (1, 1)}]
    found = paired(ACCURACY, first, second)
    # (1 + 0.5) / 2 beside (0.5 + 1) / 2
    assert found is not None and found.rows == 4 and found.difference == pytest.approx(0)
    assert paired(MATTHEWS, [{0: (1, 1)}], [{1: (1, 1)}]) is None
