"""Names of tasks and groups."""

from __future__ import annotations

import pytest

from reftune.errors import DataError, ReftuneError
from reftune.evaluation.tasks import GROUPS, TASKS, parse_tasks


def names(given: str | list[str]) -> list[str]:
    return [task.name for task in parse_tasks(given)]


def test_tasks_and_groups() -> None:
    assert names("boolq") == ["boolq"]
    assert names("gsm8k, boolq,") == ["gsm8k", "boolq"]
    assert names(["boolq", "glue"]) == ["boolq", *GROUPS["glue"]]
    assert names("commonsense") == list(GROUPS["commonsense"])


def test_a_task_named_twice_is_taken_once() -> None:
    assert names("arithmetic,gsm8k,math") == list(dict.fromkeys([*GROUPS["arithmetic"], *GROUPS["math"]]))


@pytest.mark.parametrize("given", ["bolq", "boolq,GLUE", ["boolq,piqa"]])
def test_an_unknown_name(given: str | list[str]) -> None:
    with pytest.raises(ReftuneError, match="there is no task") as error:
        parse_tasks(given)
    assert "boolq" in str(error.value) and "commonsense" in str(error.value)


@pytest.mark.parametrize("given", ["", " , ", []])
def test_no_name(given: str | list[str]) -> None:
    with pytest.raises(ReftuneError, match="no task is named"):
        parse_tasks(given)


def test_groups_are_what_the_paper_tells() -> None:
    assert [len(GROUPS[group]) for group in ("commonsense", "arithmetic", "math", "glue")] == [8, 4, 7, 8]
    assert set(GROUPS["math"]) - set(GROUPS["arithmetic"]) == {"MultiArith", "AddSub", "SingleEq"}
    assert all(member in TASKS for members in GROUPS.values() for member in members)
    assert all(name == task.name for name, task in TASKS.items())
    assert not set(GROUPS) & set(TASKS)


def test_a_task_without_a_metric_has_no_score() -> None:
    task = TASKS["alpaca_eval"]
    with pytest.raises(ReftuneError, match=r"'alpaca_eval'.*judge"):
        task.score([[1.0, 1.0]])  # type: ignore[arg-type]


def test_a_row_without_label_or_sentence() -> None:
    task = TASKS["rte"]
    with pytest.raises(DataError, match="no label in the columns sentence1"):
        task.reference({"sentence1": "a", "sentence2": "b"})
    with pytest.raises(DataError, match=r"no sentence in the columns title, label; valid: text_a \+ text_b; "):
        task.prompt({"title": "a", "label": "1"})
    # the Hub's test split hides its labels behind -1
    for label in ("-1", "2", "neutral"):
        with pytest.raises(DataError, match=f"'rte' has no label '{label}'.*entailment"):
            task.reference({"sentence1": "a", "sentence2": "b", "label": label})
