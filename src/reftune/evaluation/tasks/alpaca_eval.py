"""Alpaca-Eval 1.0 (Li et al. 2023): 805 instructions; a judge compares each answer with text-davinci-003's.

There is no score without a judge: the answer is all that was written, and the reference is the other model's.  To train
on: 1,000 rows of UltraFeedback, as in the paper's small run.  Prompts and decoding as published.
"""

from __future__ import annotations

from .alpaca import alpaca_prompt
from .base import Source, Task

__all__ = ["ALPACA_EVAL"]

ALPACA_EVAL = Task(
    name="alpaca_eval",
    title="Alpaca-Eval",
    sources={
        "train": Source("instruction/ultrafeedback_1k.train.jsonl.gz"),
        "test": Source("instruction/alpaca_eval_davinci003.test.jsonl.gz"),
    },
    prompt=lambda row: alpaca_prompt(row["instruction"], row.get("input") or ""),
    completion=lambda row: row["output"],
    reference=lambda row: row["output"].lstrip(),
    extract=lambda output: output.lstrip() or None,
    metric=None,
    generation={"max_length": 2048, "no_repeat_ngram_size": 5, "repetition_penalty": 1.1},
)
