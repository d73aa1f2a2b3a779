"""UltraFeedback (Cui et al. 2023), the whole of it, to train on as in the paper; scored as Alpaca-Eval."""

from __future__ import annotations

from dataclasses import replace

from .alpaca_eval import ALPACA_EVAL
from .base import Source

__all__ = ["ULTRAFEEDBACK"]

ULTRAFEEDBACK = replace(
    ALPACA_EVAL,
    name="ultrafeedback",
    title="Alpaca-Eval after UltraFeedback",
    sources={**ALPACA_EVAL.sources, "train": Source("instruction/ultrafeedback.train.jsonl.gz")},
)
