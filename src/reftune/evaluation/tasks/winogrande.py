"""WinoGrande (Sakaguchi et al. 2020): which of two names fills the blank of a sentence."""

from __future__ import annotations

from .base import Hub, Row
from .choices import choice_row, choice_task

__all__ = ["WINOGRANDE"]


def convert(row: Row) -> Row:
    question = (
        f"Please choose the correct answer to fill in the blank to complete the given sentence: {row['sentence']}"
    )
    options = (row["option1"], row["option2"])
    return choice_row(question, options, int(row["answer"]) - 1, word="option", before_format=" ")


WINOGRANDE = choice_task(
    "winogrande",
    "WinoGrande",
    hub=Hub("allenai/winogrande", "winogrande_xl", "validation", convert),
    train_hub=Hub("allenai/winogrande", "winogrande_xl", "train", convert),
    chance=1 / 2,
)
