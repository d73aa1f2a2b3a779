"""MAWPS (Koncel-Kedziorski et al. 2016): short word problems.  The rows to train on have an equation, no words."""

from __future__ import annotations

from .arithmetic import arithmetic_task
from .base import Row, Source

__all__ = ["MAWPS"]


def adapt(row: Row) -> Row:
    """Of a row to train on; those to test on have LLM-Adapters' fields already."""
    if "original_text" not in row:
        return row
    answer = f"{row['ans']:.10g}"
    output = f"{row['equation']}\nThe answer is {answer}."
    return {"instruction": row["original_text"], "output": output, "answer": answer}


MAWPS = arithmetic_task(
    "mawps",
    "MAWPS",
    sources={"train": Source("math/mawps.train.jsonl.gz"), "test": Source("math/mawps.test.jsonl.gz")},
    adapt=adapt,
)
