"""Outputs as each form of score reads them, the form that is guessed, and scores beside those of other packages."""

from __future__ import annotations

from typing import Any

import pytest
from sklearn.metrics import f1_score

from reftune.errors import DataError, ReftuneError
from reftune.evaluation.own.guess import guess
from reftune.evaluation.own.labels import NO_LABEL, Labels
from reftune.evaluation.own.readings import number_in, reading_of


def right(score: str, output: str, answer: str, *others: str) -> bool:
    reading = reading_of(score, [answer, *others])
    found = reading.extract(output)
    return found is not None and reading.matches(found, reading.reference(answer))


@pytest.mark.parametrize(
    ("answers", "form", "words"),
    [
        (["yes", "no"] * 5, "labels", "2 different answers in 10 rows"),
        (["Very good", "bad", " BAD"] * 4, "labels", "2 different"),
        (["1", "2", "3", "4", "5"] * 10, "labels", "5 different"),
        (["1", "2", "3", "4", "5"], "number", "are numbers"),
        ([str(i) for i in range(40)], "number", "are numbers"),
        (["$1,200.50", "3 %", "−4", "7"], "number", "are numbers"),
        (["Paris", "Rome", "Bern", "Oslo"], "exact", "short"),
        (["3,5", "4,5", "5,5"], "exact", "short"),
        (["We are sorry about the lamp and send another.", "Thank you for writing to us about it."], "rouge", "free"),
        (["x" * 41, "y" * 41] * 9, "rouge", "free"),
        (["one row"], "exact", "short"),
    ],
)
def test_the_guess_and_its_sentence(answers: list[str], form: str, words: str) -> None:
    found, told = guess(answers, "t.csv")
    assert found == form and words in told and told.startswith("t.csv: ")


def test_one_answer_for_all_is_no_task() -> None:
    with pytest.raises(DataError, match=r"all 3 answers are 'spam'.*--score exact"):
        guess(["spam", "Spam", " spam "], "t.csv")


@pytest.mark.parametrize(
    ("output", "label"),
    [
        ("refund", "refund"),
        (" Refund.\n", "refund"),
        ("**refund**", "refund"),
        ("refund\nBecause the customer asks for money, not praise.", "refund"),
        ("The label is: Refund!", "refund"),
        ("refund or praise", None),
        ("refunded", None),
        ("", None),
        ("very good", "very good"),
        ("It was very good", "very good"),
        ("It was good", "good"),
    ],
)
def test_a_label_is_said_or_named_alone(output: str, label: str | None) -> None:
    assert Labels.of(["refund", "praise", "good", "very good"]).read(output) == label


def test_labels_that_differ_in_capitals_are_one() -> None:
    labels = Labels.of(["Spam", "spam", "Spam", "ham"])
    assert labels.names == ("Spam", "ham") and labels.canonical("SPAM ") == "Spam"


def test_labels_of_signs() -> None:
    labels = Labels.of(["A", "A*", "B", "!", "C++", "C"])
    assert [labels.read(text) for text in ("A*", "A", "B.", "!", "C++", "C", "A*.")] == [
        "A*",
        "A",
        "B",
        "!",
        "C++",
        "C",
        "A*",
    ]
    assert Labels.of(["B", "C"]).read("B.") == "B"


def test_labels_beside_scikit_learn() -> None:
    wanted = ["a", "a", "b", "b", "b", "c"]
    given = ["a", "b", "b", None, "b", "a"]
    examples: list[dict[str, Any]] = [{"reference": w, "answer": g} for w, g in zip(wanted, given, strict=True)]
    found = Labels.of([*wanted, "never"]).details(examples)
    rows = {one["label"]: one for one in found["labels"]}
    assert list(rows) == ["a", "b", "c"]
    assert (rows["a"]["precision"], rows["a"]["recall"], rows["a"]["rows"]) == (0.5, 0.5, 2)
    assert rows["b"]["precision"] == pytest.approx(2 / 3) and rows["b"]["recall"] == pytest.approx(2 / 3)
    assert rows["c"]["f1"] == 0
    filled = [NO_LABEL if one is None else one for one in given]
    macro = f1_score(wanted, filled, labels=["a", "b", "c"], average="macro", zero_division=0)
    assert found["macro_f1"] == pytest.approx(macro)
    assert found["confusion"] == {
        "columns": ["a", "b", "c", NO_LABEL],
        "rows": [[1, 1, 0, 0], [0, 2, 0, 1], [1, 0, 0, 0]],
    }


@pytest.mark.parametrize(
    ("output", "answer", "is_right"),
    [
        ("It costs $1,200.50 in all.", "1200.5", True),
        ("2 + 3 = 5", "5", True),
        ("5 and 6", "5", False),
        ("minus: −4", "-4", True),
        ("3-2", "2", True),
        ("1e3", "1000", True),
        ("2019", "2020", False),
        ("0.0004", "0.0005", False),
        ("none", "5", False),
        ("12.5 %", "12.5%", True),
    ],
)
def test_numbers(output: str, answer: str, is_right: bool) -> None:
    assert right("number", output, answer) is is_right


def test_what_is_no_number_is_not_taken_for_one() -> None:
    assert number_in("3,5") is None and number_in("12 km") is None and number_in("1,234") == 1234
    with pytest.raises(ReftuneError, match=r"1 of 2 answers are no numbers, the first is '3,5'"):
        reading_of("number", ["3", "3,5"])


@pytest.mark.parametrize(
    ("score", "output", "answer", "is_right"),
    [
        ("exact", " Paris\n", "Paris", True),
        ("exact", "paris", "Paris", False),
        ("exact", "New  York", "New York", True),
        ("contains", "It is in PARIS, I think", "Paris", True),
        ("contains", "I know", "no", False),
        ("contains", "say C++ now", "C++", True),
        (r"regex:#### (.*)", "2+2\n#### 4", "#### 4", True),
        (r"regex:#### (.*)", "2+2\n#### 4", "4", True),
        (r"regex:\d+", "about 12 of 13", "12", True),
        (r"regex:\d+", "none", "12", False),
        ("f1", "b a", "a b", False),
        ("rouge", "a  b", "a b", True),
    ],
)
def test_texts(score: str, output: str, answer: str, is_right: bool) -> None:
    assert right(score, output, answer) is is_right


def test_words_of_every_script_count() -> None:
    for answer in ("Größe über alles", "我喜欢猫", "Привет мир"):
        rouge, f1 = reading_of("rouge", [answer]), reading_of("f1", [answer])
        assert rouge.numbers is not None and f1.numbers is not None
        assert rouge.numbers(answer, answer) == f1.numbers(answer, answer) == (1.0, 1.0)
        assert rouge.numbers(None, answer)[0] == 0 and f1.numbers("другой", answer)[0] == 0
    rouge = reading_of("rouge", ["a b c d"])
    # a b d is the longest common sequence: precision 3/3, recall 3/4
    assert rouge.numbers is not None and rouge.numbers("a b d", "a b c d")[0] == pytest.approx(6 / 7)
    f1 = reading_of("f1", ["a b c d"])
    assert f1.numbers is not None and f1.numbers("d c b a", "a b c d")[0] == 1
    half = reading_of("f1", ["我喜欢猫"])
    assert half.numbers is not None and half.numbers("我喜欢狗", "我喜欢猫")[0] == pytest.approx(3 / 4)
