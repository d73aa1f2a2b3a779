"""SingleEq (Koncel-Kedziorski et al. 2015): word problems that one equation solves.  Test only."""

from __future__ import annotations

from .arithmetic import arithmetic_task
from .base import Source

__all__ = ["SINGLEEQ"]

SINGLEEQ = arithmetic_task("SingleEq", "SingleEq", sources={"test": Source("math/SingleEq.test.jsonl.gz")})
