"""AddSub (Hosseini et al. 2014): word problems of addition and subtraction.  Test only."""

from __future__ import annotations

from .arithmetic import arithmetic_task
from .base import Source

__all__ = ["ADDSUB"]

ADDSUB = arithmetic_task("AddSub", "AddSub", sources={"test": Source("math/AddSub.test.jsonl.gz")})
