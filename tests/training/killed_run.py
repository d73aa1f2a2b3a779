"""`reftune train` in a process that can be killed, forked from one that has imported all that takes long.

Must not know: what is tested with it.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

import torch

from reftune.cli.app import run

NOBODY = 65534


def start(arguments: list[str], log: Path, *, as_root: bool = True) -> Any:
    """The process; what it prints goes to `log`.  Root may write where nobody may: `as_root=False` is somebody else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=_train, args=(arguments, str(log), as_root))
    process.start()
    return process


def _train(arguments: list[str], log: str, as_root: bool) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    if not as_root and os.geteuid() == 0:
        os.setegid(NOBODY)
        os.seteuid(NOBODY)
    torch.set_num_threads(1)
    sys.argv = ["reftune", "train", *arguments]
    run()
