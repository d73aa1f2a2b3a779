"""PIQA (Bisk et al. 2020): which of two ways reaches a goal of daily life."""

from __future__ import annotations

from .base import Hub, Row
from .choices import choice_row, choice_task

__all__ = ["PIQA"]


def convert(row: Row) -> Row:
    question = f"Please choose the correct solution to the question: {row['goal']}"
    return choice_row(question, (row["sol1"], row["sol2"]), row["label"], word="solution", between="\n\n")


PIQA = choice_task(
    "piqa",
    "PIQA",
    # A copy: the authors' own set has a loading script, which `datasets` no longer runs.
    hub=Hub("baber/piqa", None, "validation", convert),
    train_hub=Hub("baber/piqa", None, "train", convert),
    chance=1 / 2,
)
