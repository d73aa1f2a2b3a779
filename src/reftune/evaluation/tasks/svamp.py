"""SVAMP (Patel et al. 2021): short word problems, varied so that key words mislead.  The set is all test."""

from __future__ import annotations

from .arithmetic import arithmetic_task
from .base import Hub, Row, Source

__all__ = ["SVAMP"]


def convert(row: Row) -> Row:
    body = row["Body"].strip()
    return {"instruction": f"{body}{'' if body.endswith('.') else '.'} {row['Question']}", "answer": row["Answer"]}


SVAMP = arithmetic_task(
    "SVAMP",
    "SVAMP",
    # The Hub's copy was parted in two; here, as in the paper, all 1,000 problems are asked.
    sources={"test": Source("math/SVAMP.test.jsonl.gz", Hub("ChilleD/SVAMP", None, "train+test", convert))},
)
