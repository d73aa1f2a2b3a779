"""The form that the eight commonsense sets share, as LLM-Adapters (Hu et al. 2023) put it and the ReFT paper used it.

The prompt is the instruction and a line break; the response is `the correct answer is X`; right is exactly X after the
first such words.

Must not know: any one set.
"""

from __future__ import annotations

from collections.abc import Sequence

from .base import Hub, Row, Source, Task

__all__ = ["TRIGGER", "after_trigger", "choice_row", "choice_task", "lettered_row"]

TRIGGER = "the correct answer is "


def after_trigger(output: str) -> str | None:
    """What follows the first `the correct answer is `, all of it; None without these words, or if nothing follows.

    As published, so that `the correct answer is answer1.` is wrong for its full stop, and a capital T hides the words.
    """
    return output.partition(TRIGGER)[2].strip() or None


def choice_task(name: str, title: str, *, hub: Hub | None, train_hub: Hub | None, chance: float) -> Task:
    """A set in the files `commonsense/<name>.{train,test}.jsonl.gz`."""
    stem = f"commonsense/{name}"
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


def lettered_row(question: str, row: Row) -> Row:
    """Of a row of the Hub with `choices` and the letter (or, in some ARC rows, the number) of the right one."""
    choices = row["choices"]
    stem = f"Please choose the correct answer to the question: {question}"
    return choice_row(stem, choices["text"], choices["label"].index(row["answerKey"]), word="answer")


def prompt(row: Row) -> dict[str, str]:
    return {"prompt": f"{row['instruction']}\n"}
