"""HellaSwag (Zellers et al. 2019): how a scene goes on, four endings."""

from __future__ import annotations

from .base import Hub, Row
from .choices import choice_row, choice_task

__all__ = ["HELLASWAG"]


def convert(row: Row) -> Row:
    start = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b']}".rstrip()
    question = f"Please choose the correct ending to complete the given sentence: {start}"
    return choice_row(question, row["endings"], int(row["label"]), word="ending")


HELLASWAG = choice_task(
    "hellaswag",
    "HellaSwag",
    hub=Hub("Rowan/hellaswag", None, "validation", convert),
    train_hub=Hub("Rowan/hellaswag", None, "train", convert),
    chance=1 / 4,
)
