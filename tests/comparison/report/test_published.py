"""The paper's numbers: named as our tasks are, consistent in themselves."""

from __future__ import annotations

import statistics

import pytest

from reftune.comparison.report.published import ARITHMETIC, COMMONSENSE, GLUE, PUBLISHED, published_for
from reftune.evaluation.tasks import GROUPS, TASKS


def test_tasks_are_named_as_ours() -> None:
    assert {name for table in PUBLISHED for name in table.tasks} <= set(TASKS)
    for table, group in ((COMMONSENSE, "commonsense"), (ARITHMETIC, "arithmetic"), (GLUE, "glue")):
        assert set(table.tasks) == set(GROUPS[group])


def test_averages_are_those_of_the_tasks() -> None:
    whole = [(table, row) for table in PUBLISHED for row in table.rows if row.scores]
    assert len(whole) == 3
    for table, row in whole:
        assert set(row.scores) == set(table.tasks)
        # both are printed with one decimal
        assert statistics.fmean(row.scores.values()) == pytest.approx(row.average, abs=0.1)


def test_only_tables_about_the_tasks_are_found() -> None:
    assert published_for(["memorisation", "MultiArith"]) == []
    found = published_for(["rte", "sst2", "gsm8k"])
    assert [(table.title, shared) for table, shared in found] == [
        ("Arithmetic reasoning", ["gsm8k"]),
    ]
    # of GLUE the average alone was published: it is told where all eight are measured
    assert [table.title for table, _ in published_for(GROUPS["glue"])] == ["GLUE"]


def test_each_row_is_there_once() -> None:
    for table in PUBLISHED:
        keys = [(row.model, row.method) for row in table.rows]
        assert len(keys) == len(set(keys)) > 0
