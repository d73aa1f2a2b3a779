"""How answers are read in outputs, on awkward ones written by hand.  Odd cases are as published; see the docstrings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reftune.evaluation.tasks import TASKS
from reftune.evaluation.tasks.arithmetic import first_letter, last_number, near
from reftune.evaluation.tasks.choices import after_trigger
from reftune.evaluation.tasks.sentences import first_word

STSB = TASKS["stsb"]


@pytest.mark.parametrize(
    ("output", "answer"),
    [
        ("the correct answer is answer3", "answer3"),
        (" the correct answer is  true\n", "true"),
        ("\nI think the correct answer is solution2", "solution2"),
        # all of what follows is the answer, so that nothing may follow
        ("the correct answer is option1.", "option1."),
        ("the correct answer is answer1 because it is wet", "answer1 because it is wet"),
        ("the correct answer is ending2 or ending3", "ending2 or ending3"),
        ("the correct answer is ANSWER1", "ANSWER1"),
        # the trigger twice: the first counts
        ("the correct answer is answer1\nthe correct answer is answer2", "answer1\nthe correct answer is answer2"),
        # the words must be there to the letter
        ("The correct answer is answer1", None),
        ("the correct answer: answer1", None),
        ("the correct answer is\nanswer1", None),
        ("answer1", None),
        ("the correct answer is ", None),
        ("the correct answer is", None),
        ("", None),
    ],
)
def test_after_the_trigger(output: str, answer: str | None) -> None:
    assert after_trigger(output) == answer


@pytest.mark.parametrize("output", ["the correct answer is answer1.", "the correct answer is answer1 or answer2", ""])
def test_a_choice_with_more_behind_it_is_wrong(output: str) -> None:
    task = TASKS["ARC-Easy"]
    assert not task.is_right(task.extract(output), "answer1")
    assert task.is_right(task.extract("the correct answer is answer1 \n"), "answer1")


@pytest.mark.parametrize(
    ("output", "answer"),
    [
        ("The answer is 42.", "42"),
        ("She pays $1,234.50.", "1234.50"),
        ("1,000,000", "1000000"),
        ("3, 4", "4"),
        ("3,4", "34"),
        ("It is -7 degrees", "-7"),
        ("the answer is -0.5", "-0.5"),
        ("the answer is −7", "7"),
        ("a rise of 15%", "15"),
        ("the answer is 5 because 2 + 3 is 5, which was asked on page 12", "12"),
        ("the answer is 8.\n### Instruction:\nWhat is 9 - 1?", "1"),
        ("10-3", "-3"),
        ("1/2", "2"),
        ("2^10", "10"),
        (".5", "5"),
        ("1e3", "3"),
        ("12:30", "30"),
        ("3.14.15", "15"),
        ("#### 72", "72"),
        ("THE ANSWER IS 9", "9"),
        ("٣", "٣"),
        ("forty-two", None),
        ("-", None),
        ("", None),
    ],
)
def test_the_last_number(output: str, answer: str | None) -> None:
    assert last_number(output) == answer


@given(st.text())
def test_the_last_number_of_anything_is_none_or_a_number(output: str) -> None:
    answer = last_number(output)
    assert answer is None or float(answer) == float(answer)


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("42", "42.0", True),
        ("42.001", "42.0", True),
        ("42.0011", "42.0", False),
        ("-3", "3.0", False),
        ("0.3333", "0.3333333333333333", True),
        ("0.33", "0.3333333333333333", False),
        ("1234.50", "1234.5", True),
        ("9" * 400, "9.0", False),
    ],
)
def test_near(answer: str, reference: str, right: bool) -> None:
    assert near(answer, reference) is right


@pytest.mark.parametrize(
    ("output", "letter"),
    [
        ("D", "D"),
        ("The answer is (D).", "D"),
        ("the answer is d", None),
        ("It is (C), not (B).", "C"),
        # published: any capital will do, that of a name or of a first word too
        ("Bill rides 3 miles. The answer is (D).", "B"),
        ("Answer: E", "A"),
        ("\nRationale: 3 + 4 = 7. The answer is (E).", "E"),
        ("FIVE", "E"),
        ("42", None),
        ("", None),
    ],
)
def test_the_first_letter(output: str, letter: str | None) -> None:
    assert first_letter(output) == letter


@pytest.mark.parametrize(
    ("output", "word"),
    [
        (" yes", "yes"),
        ("Yes.", "yes"),
        ("NO!", "no"),
        ("\n\n**No**, since", "no"),
        ("yes no", "yes"),
        ("yes/no", "yes"),
        ("“yes”", "yes"),
        ("yes_no", "yes"),
        ("yesterday", None),
        ("It is yes", None),
        ("not yes", None),
        ("maybe", None),
        ("1", None),
        ("...", None),
        ("", None),
    ],
)
def test_the_first_word(output: str, word: str | None) -> None:
    assert first_word(output, ("no", "yes")) == word


@pytest.mark.parametrize(
    ("output", "number"),
    [
        (" 3.8", "3.8"),
        ("3.8.", "3.8"),
        ("4", "4.0"),
        ("5.0 (the same)", "5.0"),
        ("**2.5**", "2.5"),
        ("0", "0.0"),
        (".5", "0.5"),
        ("4, since", "4.0"),
        ("3.25 or 4", "3.25"),
        ("4/5", "4.0"),
        ("5.1", None),
        ("-1", None),
        ("−1", None),
        ("1,234.5", None),
        ("3,8", None),
        ("80%", None),
        ("3.8x", None),
        ("About 3", None),
        ("three", None),
        ("", None),
    ],
)
def test_the_number_of_stsb(output: str, number: str | None) -> None:
    assert STSB.extract(output) == number


@given(st.integers(0, 5000))
def test_every_score_of_stsb_is_right_as_it_is_taught(thousandths: int) -> None:
    row = {"sentence1": "a", "sentence2": "b", "score": f"{thousandths / 1000:.3f}"}
    assert STSB.is_right(STSB.extract(STSB.completion(row)), STSB.reference(row))


def test_an_instruction_is_answered_by_all_that_was_written() -> None:
    extract = TASKS["alpaca_eval"].extract
    assert extract("\n Oak.\n\nIt grows.\n") == "Oak.\n\nIt grows.\n"
    assert extract("### Response: 1,000") == "### Response: 1,000"
    assert extract(" \n") is None
    assert extract("") is None
