"""Social IQa (Sap et al. 2019): what people want, feel or do next, three answers."""

from __future__ import annotations

from .base import Hub, Row
from .choices import choice_row, choice_task

__all__ = ["SOCIAL_I_QA"]


def convert(row: Row) -> Row:
    question = f"Please choose the correct answer to the question: {row['context']} {row['question']}"
    options = (row["answerA"], row["answerB"], row["answerC"])
    return choice_row(question, options, int(row["label"]) - 1, word="answer")


SOCIAL_I_QA = choice_task(
    "social_i_qa",
    "SIQA",
    # A copy: the authors' own set has a loading script, which `datasets` no longer runs.
    hub=Hub("lighteval/siqa", None, "validation", convert),
    train_hub=Hub("lighteval/siqa", None, "train", convert),
    chance=1 / 3,
)
