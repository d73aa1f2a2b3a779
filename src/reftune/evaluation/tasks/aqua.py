"""AQuA (Ling et al. 2017): five answers to problems of algebra, by their letter.  Test only."""

from __future__ import annotations

from .arithmetic import arithmetic_task, first_letter
from .base import Hub, Row, Source, same_text

__all__ = ["AQUA"]


def convert(row: Row) -> Row:
    """The Hub's options read `A)21`.  LLM-Adapters put blanks around all brackets, those in the options too."""
    options = "".join(f"({option}" for option in row["options"]).replace("(", " (").replace(")", ") ")
    instruction = f"{row['question'].strip()} Answer Choices:{options}"
    return {"instruction": instruction, "output": row["rationale"], "answer": row["correct"]}


AQUA = arithmetic_task(
    "AQuA",
    "AQuA",
    sources={"test": Source("math/AQuA.test.jsonl.gz", Hub("deepmind/aqua_rat", "raw", "test", convert))},
    extract=first_letter,
    matches=same_text,
    chance=1 / 5,
)
