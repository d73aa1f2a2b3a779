"""MultiArith (Roy and Roth 2015): word problems of two steps and more.  Test only."""

from __future__ import annotations

from .arithmetic import arithmetic_task
from .base import Source

__all__ = ["MULTIARITH"]

MULTIARITH = arithmetic_task("MultiArith", "MultiArith", sources={"test": Source("math/MultiArith.test.jsonl.gz")})
