"""Stanford Alpaca's prompt as the ReFT paper's tasks have it, and the instruction sets that are asked with it alone.

Must not know: models, where files lie.
"""

from __future__ import annotations

from dataclasses import replace

from ...data.templates import alpaca_text
from .base import Source, Task

__all__ = ["INSTRUCTIONS", "alpaca_prompt"]


def alpaca_prompt(instruction: str, extra: str = "") -> dict[str, str]:
    """With a line break after `### Response:`.

    `reftune.data` ends its prompt with the colon, as Alpaca itself did, so the text is given whole.
    """
    return {"prompt": alpaca_text({"instruction": instruction, "input": extra}) + "\n"}


# Alpaca-Eval 1.0 (Li et al. 2023): 805 instructions; a judge compares each answer with text-davinci-003's.
#
# There is no score without a judge: the answer is all that was written, and the reference is the other model's.  To
# train on: 1,000 rows of UltraFeedback, as in the paper's small run.  Prompts and decoding as published.
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

# Cui et al. 2023, the whole of it, to train on as in the paper; scored as Alpaca-Eval.
ULTRAFEEDBACK = replace(
    ALPACA_EVAL,
    name="ultrafeedback",
    title="Alpaca-Eval after UltraFeedback",
    sources={**ALPACA_EVAL.sources, "train": Source("instruction/ultrafeedback.train.jsonl.gz")},
)

INSTRUCTIONS = (ALPACA_EVAL, ULTRAFEEDBACK)
