"""The eight commonsense sets, as LLM-Adapters (Hu et al. 2023) put them and the ReFT paper used them.

The prompt is the instruction and a line break; the response is `the correct answer is X`; right is exactly X after the
first such words.

Must not know: models, where files lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .base import Hub, Row, Source, Task

__all__ = ["COMMONSENSE", "after_trigger"]

TRIGGER = "the correct answer is "


def after_trigger(output: str) -> str | None:
    """What follows the first `the correct answer is `, all of it; None without these words, or if nothing follows.

    As published, so that `the correct answer is answer1.` is wrong for its full stop, and a capital T hides the words.
    """
    return output.partition(TRIGGER)[2].strip() or None


def choice_task(name: str, title: str, hub: Hub, *, chance: float) -> Task:
    """A set in the files `commonsense/<name>.{train,test}.jsonl.gz`; `hub` has its test rows."""
    stem, train_hub = f"commonsense/{name}", replace(hub, split="train")
    return Task(
        name=name,
        title=title,
        sources={"train": Source(f"{stem}.train.jsonl.gz", train_hub), "test": Source(f"{stem}.test.jsonl.gz", hub)},
        prompt=prompt,
        completion=lambda row: f"{TRIGGER}{row['answer']}",
        reference=lambda row: str(row["answer"]).strip(),
        extract=after_trigger,
        generation={"max_new_tokens": 32},
        chance=chance,
    )


def choice_row(
    question: str, options: Sequence[str], right: int, *, word: str, between: str = " ", before_format: str = "\n\n"
) -> Row:
    """A row as in LLM-Adapters' files, from a question and its options; `right` is the index of the right one."""
    names = [f"{word}{number}" for number in range(1, len(options) + 1)]
    listed = between.join(f"{name.capitalize()}: {option}" for name, option in zip(names, options, strict=True))
    instruction = f"{question}\n\n{listed}{before_format}Answer format: {'/'.join(names)}"
    return {"instruction": instruction, "answer": names[right]}


def lettered_row(row: Row) -> Row:
    """Of a row of the Hub with `choices` and the letter (or, in some ARC rows, the number) of the right one."""
    choices = row["choices"]
    stem = f"Please choose the correct answer to the question: {row.get('question') or row['question_stem']}"
    return choice_row(stem, choices["text"], choices["label"].index(row["answerKey"]), word="answer")


def prompt(row: Row) -> dict[str, str]:
    return {"prompt": f"{row['instruction']}\n"}


def boolq_row(row: Row) -> Row:
    question = f"Please answer the following question with true or false, question: {row['question']}?"
    return {"instruction": f"{question}\n\nAnswer format: true/false", "answer": "true" if row["answer"] else "false"}


def piqa_row(row: Row) -> Row:
    question = f"Please choose the correct solution to the question: {row['goal']}"
    return choice_row(question, (row["sol1"], row["sol2"]), row["label"], word="solution", between="\n\n")


def social_i_qa_row(row: Row) -> Row:
    question = f"Please choose the correct answer to the question: {row['context']} {row['question']}"
    options = (row["answerA"], row["answerB"], row["answerC"])
    return choice_row(question, options, int(row["label"]) - 1, word="answer")


def hellaswag_row(row: Row) -> Row:
    start = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b']}".rstrip()
    question = f"Please choose the correct ending to complete the given sentence: {start}"
    return choice_row(question, row["endings"], int(row["label"]), word="ending")


def winogrande_row(row: Row) -> Row:
    question = (
        f"Please choose the correct answer to fill in the blank to complete the given sentence: {row['sentence']}"
    )
    options = (row["option1"], row["option2"])
    return choice_row(question, options, int(row["answer"]) - 1, word="option", before_format=" ")


# Of PIQA and Social IQa copies: the authors' own sets have loading scripts, which `datasets` no longer runs.
COMMONSENSE = (
    # Clark et al. 2019: yes/no questions, here without their passage
    choice_task("boolq", "BoolQ", Hub("google/boolq", None, "validation", boolq_row), chance=1 / 2),
    # Bisk et al. 2020: which of two ways reaches a goal of daily life
    choice_task("piqa", "PIQA", Hub("baber/piqa", None, "validation", piqa_row), chance=1 / 2),
    # Sap et al. 2019: what people want, feel or do next, three answers
    choice_task("social_i_qa", "SIQA", Hub("lighteval/siqa", None, "validation", social_i_qa_row), chance=1 / 3),
    # Zellers et al. 2019: how a scene goes on, four endings
    choice_task("hellaswag", "HellaSwag", Hub("Rowan/hellaswag", None, "validation", hellaswag_row), chance=1 / 4),
    # Sakaguchi et al. 2020: which of two names fills the blank of a sentence
    choice_task(
        "winogrande",
        "WinoGrande",
        Hub("allenai/winogrande", "winogrande_xl", "validation", winogrande_row),
        chance=1 / 2,
    ),
    # Clark et al. 2018: school science that simple methods answer, and that they get wrong; mostly four answers
    choice_task("ARC-Easy", "ARC-e", Hub("allenai/ai2_arc", "ARC-Easy", "test", lettered_row), chance=1 / 4),
    choice_task("ARC-Challenge", "ARC-c", Hub("allenai/ai2_arc", "ARC-Challenge", "test", lettered_row), chance=1 / 4),
    # Mihaylov et al. 2018: elementary science, four answers, without the book
    choice_task("openbookqa", "OBQA", Hub("allenai/openbookqa", "main", "test", lettered_row), chance=1 / 4),
)
