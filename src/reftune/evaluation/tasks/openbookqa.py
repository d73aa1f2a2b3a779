"""OpenBookQA (Mihaylov et al. 2018): questions of elementary science, four answers, without the book."""

from __future__ import annotations

from .base import Hub, Row
from .choices import choice_task, lettered_row

__all__ = ["OPENBOOKQA"]


def convert(row: Row) -> Row:
    return lettered_row(row["question_stem"], row)


OPENBOOKQA = choice_task(
    "openbookqa",
    "OBQA",
    hub=Hub("allenai/openbookqa", "main", "test", convert),
    train_hub=Hub("allenai/openbookqa", "main", "train", convert),
    chance=1 / 4,
)
