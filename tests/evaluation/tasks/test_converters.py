"""Rows of the Hub become the rows of the files: same instruction, same answer.

The questions are rows of the published files, so the expected texts are those; where the files are, they are looked up.
"""

from __future__ import annotations

from typing import Any

import pytest

from reftune.evaluation.data import task_rows
from reftune.evaluation.tasks import TASKS
from tests.evaluation.tasks.rows import data_folder

CHOOSE = "Please choose the correct answer to the question: "
FOUR = "\n\nAnswer format: answer1/answer2/answer3/answer4"
CELLS = ["brain cells", "bone cells", "muscle cells", "ovary cells"]
BILLS = {
    "A)": "D/(M-3)",
    "B)": "MD/3",
    "C)": "M/(D-3)",
    "D)": "3D/(M2-3M)",
    "E)": "None of these",
}

CASES: list[tuple[str, str, dict[str, Any], str, str]] = [
    (
        "boolq",
        "test",
        {"question": "does ethanol take more energy make that produces", "passage": "…", "answer": False},
        "Please answer the following question with true or false, question: does ethanol take more energy make that "
        "produces?\n\nAnswer format: true/false",
        "false",
    ),
    (
        "piqa",
        "test",
        {"goal": "Shovel", "sol1": "cleans up rocks if spilled", "sol2": "cleans up blood if spilled", "label": 0},
        "Please choose the correct solution to the question: Shovel\n\nSolution1: cleans up rocks if spilled\n\n"
        "Solution2: cleans up blood if spilled\n\nAnswer format: solution1/solution2",
        "solution1",
    ),
    (
        "social_i_qa",
        "test",
        {
            "context": "Tracy didn't go home that evening and resisted Riley's attacks.",
            "question": "What does Tracy need to do before this?",
            "answerA": "make a new plan",
            "answerB": "Go home and see Riley",
            "answerC": "Find somewhere to go",
            "label": "3",
        },
        f"{CHOOSE}Tracy didn't go home that evening and resisted Riley's attacks. What does Tracy need to do before "
        "this?\n\nAnswer1: make a new plan Answer2: Go home and see Riley Answer3: Find somewhere to go\n\n"
        "Answer format: answer1/answer2/answer3",
        "answer3",
    ),
    (
        "hellaswag",
        "train",
        {
            "activity_label": "Beer pong",
            "ctx_a": "Guys point at the camera and laugh. A guy takes the golf ball out of the cup and attempts to "
            "drink the liquid.",
            "ctx_b": "a guy",
            "endings": [
                "throws a golf ball with his back toward the table, lands it inside the cup, and leaves the room.",
                "stands on a court and pushes a ball into a cup.",
                "sits and talks with a friend while he interviews other players in the bathroom.",
                "shoots holes in the table.",
            ],
            "label": "0",
        },
        "Please choose the correct ending to complete the given sentence: Beer pong: Guys point at the camera and "
        "laugh. A guy takes the golf ball out of the cup and attempts to drink the liquid. a guy\n\nEnding1: throws a "
        "golf ball with his back toward the table, lands it inside the cup, and leaves the room. Ending2: stands on a "
        "court and pushes a ball into a cup. Ending3: sits and talks with a friend while he interviews other players "
        "in the bathroom. Ending4: shoots holes in the table.\n\nAnswer format: ending1/ending2/ending3/ending4",
        "ending1",
    ),
    (
        "winogrande",
        "test",
        {
            "sentence": "Sarah was a much better surgeon than Maria so _ always got the easier cases.",
            "option1": "Sarah",
            "option2": "Maria",
            "answer": "2",
        },
        "Please choose the correct answer to fill in the blank to complete the given sentence: Sarah was a much better "
        "surgeon than Maria so _ always got the easier cases.\n\nOption1: Sarah Option2: Maria Answer format: "
        "option1/option2",
        "option2",
    ),
    (
        "ARC-Easy",
        "test",
        {
            "question": "Meiosis is a type of cell division in which germ cells divide to produce haploid cells. Where "
            "does meiosis occur?",
            "choices": {"text": CELLS, "label": ["A", "B", "C", "D"]},
            "answerKey": "D",
        },
        f"{CHOOSE}Meiosis is a type of cell division in which germ cells divide to produce haploid cells. Where does "
        f"meiosis occur?\n\nAnswer1: brain cells Answer2: bone cells Answer3: muscle cells Answer4: ovary cells{FOUR}",
        "answer4",
    ),
    (
        "ARC-Challenge",
        "test",
        {
            "question": "A toy truck rolls over a smooth surface. If the surface is covered with sand, the truck will "
            "most likely roll",
            # some rows of ARC have numbers for letters
            "choices": {"text": ["slower", "faster", "at the same speed"], "label": ["1", "2", "3"]},
            "answerKey": "1",
        },
        f"{CHOOSE}A toy truck rolls over a smooth surface. If the surface is covered with sand, the truck will most "
        "likely roll\n\nAnswer1: slower Answer2: faster Answer3: at the same speed\n\n"
        "Answer format: answer1/answer2/answer3",
        "answer1",
    ),
    (
        "openbookqa",
        "test",
        {
            "question_stem": "Predators eat",
            "choices": {"text": ["lions", "humans", "bunnies", "grass"], "label": ["A", "B", "C", "D"]},
            "answerKey": "C",
        },
        f"{CHOOSE}Predators eat\n\nAnswer1: lions Answer2: humans Answer3: bunnies Answer4: grass{FOUR}",
        "answer3",
    ),
    (
        "AQuA",
        "test",
        {
            "question": "M men agree to purchase a gift for Rs. D. If 3 men drop out how much more will each have to "
            "contribute towards the purchase of the gift?",
            "options": [letter + option for letter, option in BILLS.items()],
            "rationale": "…",
            "correct": "D",
        },
        "M men agree to purchase a gift for Rs. D. If 3 men drop out how much more will each have to contribute "
        "towards the purchase of the gift? Answer Choices: (A) D/ (M-3)  (B) MD/3 (C) M/ (D-3)  (D) 3D/ (M2-3M)  "
        "(E) None of these",
        "D",
    ),
    (
        "SVAMP",
        "test",
        {
            "Body": "We ordered 9 pizzas. Each pizza has 10 slices. If there are 2 of us",
            "Question": "How many slices of pizza does each of us get if distributed equally?",
            "Answer": "45.0",
        },
        "We ordered 9 pizzas. Each pizza has 10 slices. If there are 2 of us. How many slices of pizza does each of us "
        "get if distributed equally?",
        "45.0",
    ),
]


@pytest.mark.parametrize(("name", "split", "original", "instruction", "answer"), CASES, ids=[case[0] for case in CASES])
def test_a_row_of_the_hub(name: str, split: str, original: dict[str, Any], instruction: str, answer: str) -> None:
    hub = TASKS[name].sources[split].hub
    assert hub is not None
    row = hub.convert(original)
    assert (row["instruction"], row["answer"]) == (instruction, answer)
    assert TASKS[name].reference(row) == answer


@pytest.mark.skipif(data_folder() is None, reason="needs the data folder (REFTUNE_DATA)")
@pytest.mark.parametrize(("name", "split", "original", "instruction", "answer"), CASES, ids=[case[0] for case in CASES])
def test_the_file_has_the_row(name: str, split: str, original: dict[str, Any], instruction: str, answer: str) -> None:
    rows = task_rows(TASKS[name], split, data_dir=data_folder())
    assert (instruction, answer) in {(row["instruction"], row["answer"]) for row in rows}


def test_a_solution_of_gsm8k() -> None:
    """The calculator's marks go; the sign before the answer becomes the published words, with their two blanks."""
    task = TASKS["gsm8k"]
    answer = "She sold 48/2 = <<48/2=24>>24 clips in May.\nIn all $<<48+24=72>>1,072.\n#### 1,072"
    row = {"question": "How many?", "answer": answer}
    assert task.completion(row) == ("She sold 48/2 = 24 clips in May.\nIn all $1,072.\nThe final answer is:  1,072")
    assert task.reference(row) == "1072"
    assert task.prompt(row)["prompt"].endswith("### Instruction:\nHow many?\n\n### Response:\n")


def test_a_solution_of_mawps() -> None:
    task = TASKS["mawps"]
    row = {"original_text": "5 and 2.5 ?", "equation": "X=(5.0+2.5)", "ans": 7.5}
    assert task.completion(row) == "X=(5.0+2.5)\nThe answer is 7.5."
    assert task.completion({**row, "ans": 1236666.67}).endswith("is 1236666.67.")
    assert task.completion({**row, "ans": -3.0}).endswith("is -3.")


def test_the_solution_of_a_row_is_not_touched() -> None:
    """Line breaks in front are as in math_10k."""
    row = {"instruction": "2 + 2?", "input": "", "output": "\nA: 4 it is.", "answer": "4"}
    assert TASKS["AddSub"].completion(row) == "\nA: 4 it is."


@pytest.mark.parametrize(
    ("name", "row", "word", "label"),
    [
        ("cola", {"sentence": "Hi.", "label": 1, "idx": 0}, "yes", 1),
        ("sst2", {"sentence": "bad ", "label": 0, "idx": 0}, "negative", 0),
        ("mrpc", {"sentence1": "a", "sentence2": "b", "label": 1, "idx": 0}, "yes", 1),
        ("qqp", {"question1": "a", "question2": "b", "label": 0, "idx": 0}, "no", 0),
        ("qnli", {"question": "a", "sentence": "b", "label": 0, "idx": 0}, "yes", 0),
        ("rte", {"sentence1": "a", "sentence2": "b", "label": 1, "idx": 0}, "no", 1),
        ("mnli", {"premise": "a", "hypothesis": "b", "label": 1, "idx": 0}, "maybe", 1),
        ("stsb", {"sentence1": "a", "sentence2": "b", "label": 3.4, "idx": 0}, "3.4", 3.4),
    ],
)
def test_a_row_of_glue_on_the_hub(name: str, row: dict[str, Any], word: str, label: float) -> None:
    task = TASKS[name]
    hub = task.sources["test"].hub
    assert hub is not None and task.classes is not None
    converted = hub.convert(row)
    assert task.reference(converted) == word
    assert task.classes.label(converted) == label
    first, second = task.classes.texts(converted)
    assert (first, second) == ((row["sentence"].strip(), None) if name in ("cola", "sst2") else ("a", "b"))
