"""BoolQ (Clark et al. 2019): yes/no questions, here without their passage, answered true or false."""

from __future__ import annotations

from .base import Hub, Row
from .choices import choice_task

__all__ = ["BOOLQ"]


def convert(row: Row) -> Row:
    question = f"Please answer the following question with true or false, question: {row['question']}?"
    return {
        "instruction": f"{question}\n\nAnswer format: true/false",
        "answer": "true" if row["answer"] else "false",
    }


BOOLQ = choice_task(
    "boolq",
    "BoolQ",
    hub=Hub("google/boolq", None, "validation", convert),
    train_hub=Hub("google/boolq", None, "train", convert),
    chance=1 / 2,
)
