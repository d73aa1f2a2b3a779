"""A budget as people write it: `40 trials`, `30m`, `2h`.

Must not know: what it is spent on.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from ..errors import ReftuneError

__all__ = ["Budget"]

SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}
NAMES = {"sec": "s", "second": "s", "min": "m", "minute": "m", "hour": "h"}


@dataclass(frozen=True)
class Budget:
    """So many trials, or so many seconds of all processes together."""

    trials: int | None = None
    seconds: float | None = None

    @classmethod
    def of(cls, value: Any) -> Budget:
        """From a text or a number of trials.

        Raises:
            ReftuneError: it is something else, or allows no trial.
        """
        problem = ReftuneError(f"budget={value!r} is not valid; use trials or a time, such as '40 trials', '30m' or 2h")
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            raise problem
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", str(value).lower())
        if found is None:
            raise problem
        number, unit = float(found[1]), found[2]
        if unit in ("", "trial", "trials"):
            if not number.is_integer():
                raise problem
            if number < 1:
                raise ReftuneError(f"budget={value!r} allows no trial; use 1 or more")
            return cls(trials=int(number))
        short = unit if unit in SECONDS else NAMES.get(unit.removesuffix("s"))
        if short is None:
            raise problem
        if number == 0 or not math.isfinite(number):
            raise ReftuneError(f"budget={value!r} allows no trial; use a time above 0")
        return cls(seconds=number * SECONDS[short])

    def __str__(self) -> str:
        if self.trials is not None:
            return f"{self.trials:,} trial{'' if self.trials == 1 else 's'}"
        assert self.seconds is not None
        for unit in ("h", "m"):
            if self.seconds >= SECONDS[unit] and not self.seconds % SECONDS[unit]:
                return f"{self.seconds / SECONDS[unit]:g}{unit}"
        return f"{self.seconds:g}s"
