"""The benchmark sets by name, and the groups of the paper's tables.  A new task is one file and one line here.

Must not know: models, where files lie.
"""

from __future__ import annotations

from collections.abc import Iterable

from ...errors import ReftuneError
from .addsub import ADDSUB
from .alpaca_eval import ALPACA_EVAL
from .aqua import AQUA
from .arc_challenge import ARC_CHALLENGE
from .arc_easy import ARC_EASY
from .base import Task
from .boolq import BOOLQ
from .codebook import CODEBOOK
from .cola import COLA
from .gsm8k import GSM8K
from .hellaswag import HELLASWAG
from .mawps import MAWPS
from .memorisation import MEMORISATION
from .mnli import MNLI
from .mrpc import MRPC
from .multiarith import MULTIARITH
from .openbookqa import OPENBOOKQA
from .piqa import PIQA
from .qnli import QNLI
from .qqp import QQP
from .rte import RTE
from .singleeq import SINGLEEQ
from .social_i_qa import SOCIAL_I_QA
from .sst2 import SST2
from .stsb import STSB
from .svamp import SVAMP
from .ultrafeedback import ULTRAFEEDBACK
from .winogrande import WINOGRANDE

__all__ = ["GROUPS", "TASKS", "parse_tasks"]

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        BOOLQ,
        PIQA,
        SOCIAL_I_QA,
        HELLASWAG,
        WINOGRANDE,
        ARC_EASY,
        ARC_CHALLENGE,
        OPENBOOKQA,
        AQUA,
        GSM8K,
        MAWPS,
        SVAMP,
        MULTIARITH,
        ADDSUB,
        SINGLEEQ,
        COLA,
        MNLI,
        MRPC,
        QNLI,
        QQP,
        RTE,
        SST2,
        STSB,
        ALPACA_EVAL,
        ULTRAFEEDBACK,
        MEMORISATION,
        CODEBOOK,
    )
}

GROUPS: dict[str, tuple[str, ...]] = {
    "commonsense": (
        "boolq",
        "piqa",
        "social_i_qa",
        "hellaswag",
        "winogrande",
        "ARC-Easy",
        "ARC-Challenge",
        "openbookqa",
    ),
    # The four of the paper's table, and all that its published code asks.
    "arithmetic": ("AQuA", "gsm8k", "mawps", "SVAMP"),
    "math": ("MultiArith", "gsm8k", "SVAMP", "mawps", "AddSub", "AQuA", "SingleEq"),
    "glue": ("mnli", "sst2", "mrpc", "cola", "qnli", "qqp", "rte", "stsb"),
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
                    f"there is no task {member!r}; there are {', '.join(TASKS)}, and the groups {', '.join(GROUPS)}"
                )
            found[member] = TASKS[member]
    if not found:
        raise ReftuneError(f"no task is named; there are {', '.join(TASKS)}, and the groups {', '.join(GROUPS)}")
    return list(found.values())
