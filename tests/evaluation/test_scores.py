"""Scores against their formulas written out with counts and sums, and what the bootstrap's intervals promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reftune.evaluation.scores import ACCURACY, MATTHEWS, MEAN, PEARSON, Metric, bootstrap
from reftune.evaluation.tasks import TASKS

NUMBERS = st.floats(-100, 100, allow_subnormal=False).map(lambda x: round(x, 3))
PAIRS = st.lists(st.tuples(NUMBERS, NUMBERS), min_size=2, max_size=30)
CLASSES = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40)


def columns(pairs: list[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    array = np.array(pairs, dtype=float)
    return array[:, 0], array[:, 1]


def test_accuracy_and_mean() -> None:
    answers, references = columns([(1, 1), (0, 1), (1, 1), (0, 1)])
    assert ACCURACY.of(answers, references) == 0.5
    assert MEAN.of(np.array([0.25, 1.0]), np.array([9.0, 9.0])) == 0.625


@given(CLASSES)
def test_matthews_is_its_formula_in_counts(pairs: list[tuple[bool, bool]]) -> None:
    tp = sum(a and r for a, r in pairs)
    tn = sum(not a and not r for a, r in pairs)
    fp = sum(a and not r for a, r in pairs)
    fn = sum(not a and r for a, r in pairs)
    below = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    expected = (tp * tn - fp * fn) / math.sqrt(below) if below else 0.0
    # float64, values of size 1: far above rounding, far below any difference that a score shows
    assert MATTHEWS.of(*columns(pairs)) == pytest.approx(expected, abs=1e-9)


def test_matthews_by_hand() -> None:
    """6 right of class 1, 3 right of class 0, 1 wrong in each: (6·3 − 1·1) / sqrt(7·7·4·4) = 17/28."""
    pairs = [(1, 1)] * 6 + [(0, 0)] * 3 + [(1, 0)] + [(0, 1)]
    assert MATTHEWS.of(*columns(pairs)) == pytest.approx(17 / 28, abs=1e-12)


@given(CLASSES)
def test_an_output_without_an_answer_counts_as_the_wrong_class(pairs: list[tuple[bool, bool]]) -> None:
    cola = TASKS["cola"]
    words = ("no", "yes")
    unread = np.array([cola.pair(None, words[r]) for _, r in pairs])
    wrong = np.array([cola.pair(words[not r], words[r]) for _, r in pairs])
    assert cola.score(unread) == cola.score(wrong)


@settings(max_examples=40)
@given(PAIRS)
def test_pearson_is_its_formula_in_sums(pairs: list[tuple[float, float]]) -> None:
    n = len(pairs)
    xs, ys = zip(*pairs, strict=True)
    mx, my = math.fsum(xs) / n, math.fsum(ys) / n
    sxy = math.fsum((x - mx) * (y - my) for x, y in pairs)
    sxx, syy = math.fsum((x - mx) ** 2 for x in xs), math.fsum((y - my) ** 2 for y in ys)
    found = PEARSON.of(*columns(pairs))
    if len(set(xs)) == 1 or len(set(ys)) == 1:
        assert found == 0.0
    else:
        assert found == pytest.approx(sxy / math.sqrt(sxx * syy), abs=1e-9)


def test_pearson_by_hand() -> None:
    """Deviations (−1, 0, 1) and (−1, 1, 0): 1 / sqrt(2·2)."""
    assert PEARSON.of(*columns([(1, 2), (2, 4), (3, 3)])) == pytest.approx(0.5, abs=1e-12)


def test_an_unread_similarity_is_as_far_off_as_can_be() -> None:
    stsb = TASKS["stsb"]
    assert stsb.pair("4.2", "4.0") == (4.2, 4.0)
    assert stsb.pair(None, "4.0") == (0.0, 4.0)
    assert stsb.pair(None, "1.0") == (5.0, 1.0)


def test_the_score_of_a_task_without_numbers_of_its_own() -> None:
    task = TASKS["gsm8k"]
    pairs = np.array([task.pair("3", "3.0"), task.pair("4", "3.0"), task.pair(None, "3.0")])
    assert task.score(pairs) == pytest.approx(1 / 3)


def draws(rng: np.random.Generator, rate: float, count: int) -> np.ndarray:
    return np.stack([(rng.random(count) < rate).astype(float), np.ones(count)], axis=1)


def test_intervals_hold_the_truth_nineteen_times_in_twenty() -> None:
    """150 studies of 200 rows: a share of 0.95 has a standard error of 0.018, and the percentiles of 200 draws miss by
    about 0.01, so that 0.88 is three errors and that."""
    rng = np.random.default_rng(0)
    studies = [draws(rng, 0.7, 200) for _ in range(150)]
    intervals = [bootstrap(ACCURACY, pairs, seed=seed, resamples=200) for seed, pairs in enumerate(studies)]
    assert sum(low <= 0.7 <= high for low, high in intervals) >= 0.88 * len(studies)


def test_an_interval_is_as_wide_as_theory_says() -> None:
    """1.96 standard errors to each side: sqrt(0.25 / 400) · 1.96 · 2 = 0.098.  2,000 draws give a percentile to 5 %."""
    pairs = np.stack([np.tile([0.0, 1.0], 200), np.ones(400)], axis=1)
    low, high = bootstrap(ACCURACY, pairs)
    assert high - low == pytest.approx(0.098, rel=0.1)
    assert low < 0.5 < high


def test_intervals_of_correlations_hold_the_score() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=300)
    pairs = np.stack([x + rng.normal(size=300), x], axis=1)
    low, high = bootstrap(PEARSON, pairs, resamples=500)
    assert low < PEARSON.of(*pairs.T) < high
    assert low < math.sqrt(0.5) < high
    signs = (pairs > 0).astype(float)
    low, high = bootstrap(MATTHEWS, signs, resamples=500)
    assert low < MATTHEWS.of(*signs.T) < high


def test_an_interval_is_the_same_for_the_same_seed() -> None:
    pairs = draws(np.random.default_rng(2), 0.6, 101)
    assert bootstrap(ACCURACY, pairs, resamples=50) == bootstrap(ACCURACY, pairs, resamples=50)
    assert bootstrap(ACCURACY, pairs, resamples=50) != bootstrap(ACCURACY, pairs, resamples=50, seed=1)


@pytest.mark.parametrize("metric", [MATTHEWS, PEARSON], ids=lambda metric: metric.name)
def test_rows_that_are_all_alike(metric: Metric) -> None:
    assert bootstrap(metric, np.ones((20, 2)), resamples=20) == (0.0, 0.0)


@pytest.mark.parametrize("metric", [ACCURACY, MEAN], ids=lambda metric: metric.name)
def test_all_right_is_not_sure_to_stay_so(metric: Metric) -> None:
    """Bounds of Wilson's interval of 20 of 20, and of 0 of 85, from its quadratic |p − share| = 1.96 √(p(1 − p)/n)."""
    low, high = bootstrap(metric, np.ones((20, 2)))
    assert high == 1.0 and 1 - low == pytest.approx(1.96 * math.sqrt(low * (1 - low) / 20))
    low, high = bootstrap(metric, np.array([[0.0, 1.0]] * 85))
    assert low == 0.0 and high == pytest.approx(1.96 * math.sqrt(high * (1 - high) / 85))
    assert 0.04 < high < 0.05
