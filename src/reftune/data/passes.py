"""How many rows a step, and how many passes over the rows, where nobody says.

Must not know: trainers.
"""

from __future__ import annotations

import math

__all__ = ["FEW_STEPS", "passes"]

# So many steps teach something: less rows than make so many in the usual passes get more passes.
FEW_STEPS = 40
USUAL, MOST = 3, 20
LARGEST_BATCH = 8


def passes(rows: int, *, batch: int | None = None, steps_of: int = 1) -> tuple[int, int]:
    """(rows a step, passes): of few rows two steps make a pass and there are up to 20 passes; of many, 8 rows and 3.

    `batch` is the rows a step where it is given, `steps_of` how many such batches make a step (processes ×
    accumulation).
    """
    batch = batch or max(1, min(LARGEST_BATCH, math.ceil(rows / steps_of / 2)))
    steps = math.ceil(rows / (batch * steps_of))
    return batch, max(USUAL, min(MOST, math.ceil(FEW_STEPS / steps)))
