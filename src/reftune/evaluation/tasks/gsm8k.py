"""GSM8K (Cobbe et al. 2021): word problems of several steps.

Asked as the arithmetic sets of the ReFT paper are.  pyreft has a second recipe for this set alone (another prompt, 256
new tokens): from it come only the words before the final answer, since math_10k cannot be had and the rows to train on
are the authors' human solutions.
"""

from __future__ import annotations

import re

from .arithmetic import arithmetic_task
from .base import Hub, Row, Source

__all__ = ["GSM8K"]

FINAL = "The final answer is: "
"""Published as what replaces `####`, so that two blanks stand before the number."""


def adapt(row: Row) -> Row:
    """Of a row of the authors (files `gsm8k_openai`, Hub); rows of LLM-Adapters have the fields already."""
    if "question" not in row:
        return row
    worked = re.sub(r"<<.*?>>", "", row["answer"])  # marks for a calculator
    answer = row["answer"].rpartition("####")[2].replace(",", "")
    return {"instruction": row["question"], "output": worked.replace("####", FINAL), "answer": answer}


GSM8K = arithmetic_task(
    "gsm8k",
    "GSM8K",
    sources={
        "train": Source("math/gsm8k_openai.train.jsonl.gz", Hub("openai/gsm8k", "main", "train")),
        "test": Source("math/gsm8k.test.jsonl.gz", Hub("openai/gsm8k", "main", "test")),
    },
    adapt=adapt,
)
