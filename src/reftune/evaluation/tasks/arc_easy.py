"""ARC-Easy (Clark et al. 2018): questions of school science that simple methods answer, mostly four answers."""

from __future__ import annotations

from .base import Hub, Row
from .choices import choice_task, lettered_row

__all__ = ["ARC_EASY"]


def convert(row: Row) -> Row:
    return lettered_row(row["question"], row)


ARC_EASY = choice_task(
    "ARC-Easy",
    "ARC-e",
    hub=Hub("allenai/ai2_arc", "ARC-Easy", "test", convert),
    train_hub=Hub("allenai/ai2_arc", "ARC-Easy", "train", convert),
    chance=1 / 4,
)
