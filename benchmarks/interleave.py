"""One measurement: several methods on the same rows, their steps in turn.

Must not know: which methods, which cases.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .methods import Method
from .settings import Settings
from .workers import rounds, started

Job = tuple[Method, dict[str, Any]]
"""A method and the request `load` for its worker."""


def interleaved(settings: Settings, jobs: Sequence[Job], count: int, *, steps: dict[str, int] | None = None) -> Any:
    """A row for each method, by name: seconds and tokens of each round, losses, memory, or its error.

    `steps`: how many steps make a round of a method, if not one.
    """
    requests = {method.name: {**request, **method.options} for method, request in jobs}
    methods = [method for method, _ in jobs]
    with started(methods, lambda m: requests[m.name], threads=settings.threads, log=settings.log) as (alive, rows):
        rounds(alive, rows, count, log=settings.log, steps=steps or {})
    return rows
