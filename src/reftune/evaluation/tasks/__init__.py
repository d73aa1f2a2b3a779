"""The benchmark sets by name, and the groups of the paper's tables.  A new task is one entry in its
family's file.

Must not know: models, where files lie.
"""

from __future__ import annotations

from collections.abc import Iterable

from ...errors import ReftuneError
from .alpaca import INSTRUCTIONS
from .arithmetic import ARITHMETIC
from .base import Task
from .choices import COMMONSENSE
from .codebook import CODEBOOK
from .memorisation import MEMORISATION
from .sentences import GLUE

__all__ = ["GROUPS", "TASKS", "parse_tasks"]

TASKS: dict[str, Task] = {
    task.name: task for task in (*COMMONSENSE, *ARITHMETIC, *GLUE, *INSTRUCTIONS, MEMORISATION, CODEBOOK)
}

GROUPS: dict[str, tuple[str, ...]] = {
    "commonsense": tuple(task.name for task in COMMONSENSE),
    # The four of the paper's table, and all that its published code asks.
    "arithmetic": ("AQuA", "gsm8k", "mawps", "SVAMP"),
    "math": ("MultiArith", "gsm8k", "SVAMP", "mawps", "AddSub", "AQuA", "SingleEq"),
    "glue": tuple(task.name for task in GLUE),
}


def parse_tasks(names: str | Iterable[str]) -> list[Task]:
    """Tasks of names and groups, as a list or in one text with commas; each once, in the order given.

    Raises:
        ReftuneError: an unknown name.
    """
    given = names.split(",") if isinstance(names, str) else list(names)
    found: dict[str, Task] = {}
    for name in (name.strip() for name in given):
        if not name:
            continue
        members = GROUPS.get(name, (name,))
        for member in members:
            if member not in TASKS:
                raise ReftuneError(
                    f"there is no task {member!r}; there are {', '.join(TASKS)}, the groups {', '.join(GROUPS)}, and "
                    "files of your own such as test.jsonl"
                )
            found[member] = TASKS[member]
    if not found:
        raise ReftuneError(f"no task is named; there are {', '.join(TASKS)}, and the groups {', '.join(GROUPS)}")
    return list(found.values())
