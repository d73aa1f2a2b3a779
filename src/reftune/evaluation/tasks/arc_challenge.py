"""ARC-Challenge (Clark et al. 2018): questions of school science that simple methods get wrong, mostly four answers."""

from __future__ import annotations

from .base import Hub, Row
from .choices import choice_task, lettered_row

__all__ = ["ARC_CHALLENGE"]


def convert(row: Row) -> Row:
    return lettered_row(row["question"], row)


ARC_CHALLENGE = choice_task(
    "ARC-Challenge",
    "ARC-c",
    hub=Hub("allenai/ai2_arc", "ARC-Challenge", "test", convert),
    train_hub=Hub("allenai/ai2_arc", "ARC-Challenge", "train", convert),
    chance=1 / 4,
)
