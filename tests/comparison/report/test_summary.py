"""Means, spreads, pooled intervals and leaders, recomputed by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from reftune.comparison.report import read_results
from reftune.comparison.report.results import Results, Score
from reftune.comparison.report.summary import AVERAGE, Estimate, average, lead, mean_over_tasks, method_rows, pooled
from tests.comparison.report.fakes import fake_results


def score(value: float | None, below: float = 0.03, above: float = 0.02, metric: str = "accuracy") -> Score:
    low = None if value is None else value - below
    high = None if value is None else value + above
    return Score(n=500, score=value, low=low, high=high, metric=metric)


def test_one_seed_keeps_its_interval() -> None:
    found = pooled([score(0.88)])
    assert found == Estimate(0.88, None, pytest.approx(0.85), pytest.approx(0.90), (500, 500), 1)


def test_seeds_are_pooled_by_the_formula_of_the_footnote() -> None:
    found = pooled([score(0.84, 0.03, 0.02), score(0.90, 0.05, 0.04)])
    assert found is not None
    # the deviations from 0.87 are ±0.03, so the standard deviation is sqrt(2 × 0.03²)
    assert (found.mean, found.spread) == (pytest.approx(0.87), pytest.approx(math.sqrt(0.0018)))
    seeds = 1.96 * math.sqrt(0.0018) / math.sqrt(2)
    assert found.low == pytest.approx(0.87 - math.sqrt(0.04**2 + seeds**2))
    assert found.high == pytest.approx(0.87 + math.sqrt(0.03**2 + seeds**2))
    assert found.seeds == 2


def test_more_seeds_of_equal_score_do_not_narrow_the_interval_of_the_rows() -> None:
    found = pooled([score(0.88)] * 5)
    assert found is not None and (found.low, found.high) == (pytest.approx(0.85), pytest.approx(0.90))


def test_no_interval_leaves_what_a_score_can_be() -> None:
    found = pooled([score(0.99, above=0.01), score(0.93, above=0.05)])
    assert found is not None and found.high == 1.0
    wide = pooled([score(0.9, metric="mean"), score(0.1, metric="mean")])
    assert wide is not None and wide.high is not None and wide.high > 1.0


def test_scores_that_are_none_do_not_count() -> None:
    assert pooled([score(None)]) is None
    assert pooled([]) is None
    assert pooled([score(None), score(0.88)]) == pooled([score(0.88)])


def test_an_interval_that_is_unknown_stays_unknown() -> None:
    unknown = Score(n=500, score=0.8, low=None, high=None, metric="accuracy")
    found = pooled([unknown, score(0.9)])
    assert found is not None and (found.mean, found.low, found.high) == (pytest.approx(0.85), None, None)


def test_average_of_tasks() -> None:
    one = Estimate(0.8, 0.01, 0.77, 0.84, (500, 500), 3)
    two = Estimate(0.6, 0.02, 0.56, 0.63, (277, 300), 2)
    found = average([one, two], [0.69, 0.71])
    assert found.mean == pytest.approx(0.7)
    assert found.low == pytest.approx(0.7 - math.sqrt(0.03**2 + 0.04**2) / 2)
    assert found.high == pytest.approx(0.7 + math.sqrt(0.04**2 + 0.03**2) / 2)
    assert (found.rows, found.seeds, found.spread) == ((277, 500), 2, pytest.approx(math.sqrt(0.0002)))


def of(runs: list[dict[str, Any]], tasks: int = 2) -> Results:
    return read_results({**fake_results(methods=1, tasks=tasks), "runs": runs})


def test_rows_are_labels_in_order_and_only_whole_rows_have_an_average() -> None:
    given = fake_results(methods=3, tasks=2)
    given["runs"] = [run for run in given["runs"] if (run["label"], run["train_task"]) != ("LoReFT", "qnli")]
    rows = method_rows(read_results(given))
    assert [row.name for row in rows] == ["base model", "LoReFT", "LoReFT l1 r4, reuse"]
    assert [AVERAGE in row.scores for row in rows] == [True, False, True]
    assert [row.seeds for row in rows] == [(), (42, 43, 44), (42, 43, 44)]


def test_spread_of_the_average_is_over_seeds_that_have_all_tasks() -> None:
    given = fake_results(methods=2, tasks=2)
    runs = [run for run in given["runs"] if (run["label"], run["train_task"], run["seed"]) != ("LoReFT", "qnli", 43)]
    row = method_rows(of(runs))[1]
    values = {
        (r["train_task"], r["seed"]): r["scores"][r["train_task"]]["score"] for r in runs if r["label"] == "LoReFT"
    }
    whole = [(values["sst2", seed] + values["qnli", seed]) / 2 for seed in (42, 44)]
    assert row.scores[AVERAGE].spread == pytest.approx(abs(whole[0] - whole[1]) / math.sqrt(2))
    assert row.scores["sst2"].seeds == 3 and row.scores["qnli"].seeds == 2


def test_one_training_for_several_tasks_is_one_row() -> None:
    given = fake_results(methods=2, tasks=2, seeds=(42,))
    first, second = (run for run in given["runs"] if run["label"] == "LoReFT")
    first["scores"] |= second["scores"]
    first["train_task"] = "glue"
    rows = method_rows(of([first]))
    assert [row.name for row in rows] == ["LoReFT"] and set(rows[0].scores) == {"sst2", "qnli", AVERAGE}


def test_a_task_scored_after_two_trainings_gives_two_rows() -> None:
    given = fake_results(methods=2, tasks=2, seeds=(42,))
    for run in given["runs"]:
        run["scores"] = {**given["runs"][1]["scores"], **given["runs"][3]["scores"]}
    rows = method_rows(read_results(given))
    assert [row.name for row in rows] == ["base model", "LoReFT, trained on sst2", "LoReFT, trained on qnli"]
    # what is not trained is the same however often it is scored
    assert rows[0].scores["sst2"].spread is None


def test_costs_weigh_training_tasks_equally_even_where_a_run_does_not_tell() -> None:
    runs = method_rows(of(fake_results(methods=2, tasks=2)["runs"]))[1].runs
    silent = [replace(runs[0], train_seconds=None), *runs[1:]]
    known: dict[str | None, list[float]] = {}
    for run in silent[1:]:
        assert run.train_seconds is not None
        known.setdefault(run.train_task, []).append(run.train_seconds)
    assert sorted(map(len, known.values())) == [2, 3]
    expected = sum(sum(values) / len(values) for values in known.values()) / 2
    assert mean_over_tasks(silent, "train_seconds") == pytest.approx(expected)
    assert mean_over_tasks([silent[0]], "train_seconds") is None


def led(*scores: tuple[float, float, float]) -> tuple[str, list[str], bool]:
    runs = []
    for i, (value, low, high) in enumerate(scores):
        run = fake_results(methods=2, tasks=1, seeds=(42,))["runs"][1]
        run["label"] = f"m{i}"
        run["scores"]["sst2"] |= {"score": value, "low": low, "high": high}
        runs.append(run)
    top = lead(method_rows(of(runs, tasks=1)), "sst2")
    assert top is not None
    return top.best.name, [row.name for row in top.overlapping], top.clear


def test_leaders() -> None:
    assert led((0.9, 0.88, 0.92), (0.8, 0.78, 0.82)) == ("m0", [], True)
    assert led((0.8, 0.78, 0.82), (0.9, 0.82, 0.92)) == ("m1", ["m0"], False)
    # the runner-up is clearly below, a third, less sure, is not
    assert led((0.9, 0.88, 0.92), (0.8, 0.78, 0.82), (0.7, 0.5, 0.89)) == ("m0", ["m2"], False)
    assert led((0.9, 0.88, 0.92)) == ("m0", [], False)
    assert led((0.9, math.nan, math.nan), (0.1, 0.05, 0.15)) == ("m0", ["m1"], False)
