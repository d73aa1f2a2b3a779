"""Files as tasks: what is asked, what is right, how rows are parted, and every wrong file by name."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from reftune.data.templates import alpaca_text
from reftune.errors import DataError, MissingExtraError, ReftuneError
from reftune.evaluation.data import task_rows
from reftune.evaluation.own import readings, tasks_of
from reftune.evaluation.own.rows import part, read_own
from reftune.evaluation.tasks import TASKS
from tests.evaluation.own.files import jsonl, messages


def only(entries: Any, **common: Any) -> Any:
    (task,) = tasks_of(entries, **common)
    return task


def test_records_of_every_kind_are_asked_as_in_training(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}]
    answer = {"role": "assistant", "content": "Hello"}
    rows: list[dict[str, Any]] = [
        {"prompt": "a", "completion": "Hello", "source": "x"},
        {"instruction": "a", "input": "b", "output": "Hello"},
        {"messages": [*chat, answer]},
        {"prompt": chat, "completion": [answer], "chat_template_kwargs": {"thinking": False}},
    ]
    task = only(str(jsonl(tmp_path / "mixed.jsonl", rows)), score="exact")
    found = task_rows(task, "test")
    assert [task.prompt(row) for row in found] == [
        {"prompt": "a"},
        {"instruction": "a", "input": "b"},
        {"messages": chat},
        {"prompt": chat, "chat_template_kwargs": {"thinking": False}},
    ]
    assert {task.reference(row) for row in found} == {"Hello"}
    # what `compare` trains on is the record itself
    assert [task.record(row) for row in found] == rows
    assert [row["id"] for row in found] == [1, 2, 3, 4]
    assert "### Input:\nb" in alpaca_text(task.prompt(found[1]))


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffprompt,completion\r\na,yes\r\nb,no\r\nc,yes\r\nd,no\r\n",
        "prompt;completion\na;yes\nb;no\nc;yes\nd;no\n",
        '\ufeff"prompt";"completion"\n"a";"yes"\n"b";"no"\n"c";"yes"\n"d";"no"\n',
        "prompt\tcompletion\na\tyes\nb\tno\nc\tyes\nd\tno\n",
        "prompt, completion\na,yes\nb,no\nc,yes\nd,no\n",
    ],
)
def test_tables_of_every_spreadsheet(tmp_path: Path, text: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text, encoding="utf-8", newline="")
    task = only(str(path))
    assert task.score_form == "labels"
    assert [task.reference(row) for row in task_rows(task, "test")] == ["yes", "no", "yes", "no"]


def test_commas_in_a_table_with_semicolons_are_text(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("prompt;completion\nWell, is it?;yes\nIt, is;no\n", encoding="utf-8")
    assert [row.asked["prompt"] for row in read_own(str(path))] == ["Well, is it?", "It, is"]


def test_a_split_is_the_same_tomorrow_and_no_prompt_is_on_both_sides(tmp_path: Path) -> None:
    rows = messages(300)
    rows += [{**row, "prompt": f"  {row['prompt']} "} for row in rows[:60]]
    train, test = (
        {row.asked["prompt"].strip() for row in found}
        for found in part(read_own(str(jsonl(tmp_path / "a.jsonl", rows))), 0.2, "a")
    )
    assert not train & test and len(train | test) == 300
    # 300 draws of 0.2: 60, and 7 is one standard deviation
    assert 35 <= len(test) <= 85
    random.Random(0).shuffle(rows)
    more = jsonl(tmp_path / "b.jsonl", [*rows, *messages(100, first=300)])
    again = {row.asked["prompt"].strip() for row in part(read_own(str(more)), 0.2, "b")[1]}
    assert test == again & (train | test) and len(again) > len(test)
    # as on the day when this was written
    assert sorted(test)[:3] == ["w0 w3 w0", "w10 w1 w20", "w11 w0 w27"]


def test_a_split_gives_rows_to_train_on_and_to_score(tmp_path: Path) -> None:
    file = str(jsonl(tmp_path / "all.jsonl", messages(90)))
    task = only(file, split=0.3)
    train, test = task_rows(task, "train"), task_rows(task, "test")
    assert len(train) + len(test) == 90 and not {row["id"] for row in train} & {row["id"] for row in test}
    assert any(f"{len(test)} of 90 rows are scored and not trained on" in note for note in task.notes)
    assert only([{"file": file, "split": 0.3}]).called == task.called == {"file": file, "split": 0.3}


def test_duplicates_between_files_are_counted_and_told(tmp_path: Path) -> None:
    train = messages(60)
    test = [*messages(20, first=100), *train[:3], {**train[3], "completion": "praise" if 3 % 3 else "delivery"}]
    files = {"train": str(jsonl(tmp_path / "train.jsonl", train)), "file": str(jsonl(tmp_path / "test.jsonl", test))}
    task = only([files])
    assert any("4 of 24 rows of " in note and "3 of them with the same answer" in note for note in task.notes)
    assert not any(" in " in note and "too" in note for note in only([{"file": files["file"]}]).notes)


def test_prompts_twice_and_with_two_answers_are_told(tmp_path: Path) -> None:
    rows = [*messages(12), messages(1)[0], {**messages(2)[1], "completion": "praise"}]
    notes = " ".join(only(str(jsonl(tmp_path / "a.jsonl", rows))).notes)
    assert "2 rows to score have a prompt that came before" in notes
    assert "1 prompt has more than one right answer" in notes


def test_labels_that_cannot_be_learnt_are_told(tmp_path: Path) -> None:
    train = jsonl(tmp_path / "train.jsonl", [row for row in messages(30) if row["completion"] != "praise"])
    task = only([{"file": str(jsonl(tmp_path / "t.jsonl", messages(12, first=60))), "train": str(train)}])
    assert any("no row to train on has the label 'praise', so its 4 rows" in note for note in task.notes)


def test_the_answer_may_be_in_another_column(tmp_path: Path) -> None:
    rows = [{"prompt": f"Is {i} even?", "completion": f"It is {i}: x", "answer": i % 2 == 0} for i in range(8)]
    file = str(jsonl(tmp_path / "t.jsonl", rows))
    task = only(file, answer="answer")
    assert {task.reference(row) for row in task_rows(task, "test")} == {"true", "false"}
    assert task.record(task_rows(task, "test")[0])["completion"] == "It is 0: x"
    # rows to score need no response then
    bare = str(jsonl(tmp_path / "b.jsonl", [{"prompt": f"{i}?", "label": "ab"[i % 2]} for i in range(4)]))
    assert only(bare, answer="label").score_form == "labels"
    with pytest.raises(DataError, match=r"'completion' is missing.*in another column \('label'\).*--answer"):
        tasks_of(bare)
    with pytest.raises(DataError, match=r"no row has the column 'wort' for the answer; there are 'label', 'prompt'"):
        tasks_of(bare, answer="wort")


def wrong(tmp_path: Path, text: str, name: str = "t.csv") -> str:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("name", "text", "needle"),
    [
        (
            "t.csv",
            "body,kind\na,b\n",
            "columns found: body, kind; a row needs one of these sets: prompt + completion",
        ),
        ("t.csv", "prompt,completion\n", "t.csv: no rows"),
        ("t.csv", "", "t.csv: no rows"),
        ("t.jsonl", "\n", "t.jsonl: no rows"),
        ("t.csv", "prompt,completion\na,yes\nb,\n", "row 2: 'completion' is empty"),
        (
            "t.jsonl",
            '{"prompt": "a"}\n{"prompt": "b"}',
            "line 1: 'completion' is missing or null (1 more unusable, line 2)",
        ),
        ("t.csv", "prompt,completion\na,yes\nb,yes\nc,yes\n", "all 3 answers are 'yes'"),
        ("t.txt", "a", "unknown suffix '.txt'"),
        (
            "t.jsonl",
            '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": null, '
            '"tool_calls": [{"function": {"name": "f"}}]}]}',
            "line 1: the answer calls tools",
        ),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, name: str, text: str, needle: str) -> None:
    with pytest.raises(DataError) as error:
        tasks_of(wrong(tmp_path, text, name))
    assert needle in str(error.value) and name in str(error.value)


def test_train_and_test_are_not_the_same_rows(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "t.jsonl", messages(12))
    with pytest.raises(DataError, match="is both what to train on and what to score"):
        tasks_of(str(file), train=str(tmp_path / ".." / tmp_path.name / "t.jsonl"))
    copy = jsonl(tmp_path / "copy.jsonl", messages(15)[::-1])
    with pytest.raises(DataError, match=r"all 12 rows of .*t\.jsonl are in .*copy\.jsonl too"):
        tasks_of(str(file), train=str(copy))


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ("nowhere.jsonl", "nowhere.jsonl: no such file"),
        ("sst3", "there is no task 'sst3'.*files of your own such as test.jsonl"),
        ([{"fil": "a.csv"}], "unknown keys 'fil'; valid are file, train"),
        ([{"train": "a.csv"}], "lacks file"),
        ([{"file": "a.csv", "train": "b.csv", "split": 0.2}], "train or split, not both"),
        ([{"file": "a.csv", "split": 20}], r"split=20 is not valid.*0\.2"),
        ([{"file": "a.csv", "score": "bleu"}], "score='bleu' is not valid; use one of labels, exact"),
        ([{"file": "a.csv", "score": "regex:("}], "pattern is none"),
        ([{"file": "a.csv", "score": "regex:"}], "the pattern follows"),
        ([{"file": "a.csv", "name": "sst2"}], "name='sst2'"),
        ([{"file": "a.csv", "answer": 3}], "answer=3 is not valid"),
        (3, "tasks=3 is not valid"),
        ([3], "3 is not valid"),
    ],
)
def test_a_wrong_entry_is_named(entries: Any, words: str) -> None:
    with pytest.raises(ReftuneError, match=words):
        tasks_of(entries)


def test_names_of_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    jsonl(tmp_path / "gsm8k.jsonl", messages(12))
    jsonl(tmp_path / "a, b.jsonl", messages(12))
    (tmp_path / "sub").mkdir()
    jsonl(tmp_path / "sub/gsm8k.jsonl", messages(9))
    # published numbers of a benchmark set are not for a file of its name
    assert [task.name for task in tasks_of("gsm8k.jsonl,sst2")] == ["own-gsm8k", "sst2"]
    assert only("a, b.jsonl").name == "a, b" and tasks_of("gsm8k")[0] is TASKS["gsm8k"]
    with pytest.raises(ReftuneError, match="two tasks are called 'own-gsm8k'"):
        tasks_of("gsm8k.jsonl,sub/gsm8k.jsonl")
    both = tasks_of([{"file": "gsm8k.jsonl"}, {"file": "sub/gsm8k.jsonl", "name": "second"}])
    assert [task.title for task in both] == ["gsm8k.jsonl", "second"]
    with pytest.raises(ReftuneError, match="--split is for files of your own"):
        tasks_of("sst2", split=0.2)


def test_a_file_that_changes_is_read_anew(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "t.jsonl", messages(12))
    assert len(task_rows(only(str(file)), "test")) == 12
    jsonl(file, messages(15))
    assert len(task_rows(only(str(file)), "test")) == 15


def test_a_package_that_is_not_there_is_named_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = str(jsonl(tmp_path / "t.jsonl", messages(12)))
    monkeypatch.setattr(readings.importlib.util, "find_spec", lambda name: None)
    for score, package in (("labels", "scikit-learn"), ("rouge", "rouge-score"), ("f1", "rouge-score")):
        with pytest.raises(MissingExtraError, match=rf"'{package}'.*reftune\[scores\]"):
            tasks_of(file, score=score)
    assert only(file, score="exact").score_form == "exact"


def test_settings_of_a_run_hold_a_task(tmp_path: Path) -> None:
    file = str(jsonl(tmp_path / "t.jsonl", messages(12)))
    task = only(file, score="contains")
    called = json.loads(json.dumps(task.called))
    assert only([called]).called == called == {"file": file, "score": "contains"}
