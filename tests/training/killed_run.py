"""`reftune train` in a process that can be killed, forked from one that has imported all that takes long.

Must not know: what is tested with it.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

import torch

from reftune.cli.app import run

CAP_DAC_OVERRIDE = 1


def start(arguments: list[str], log: Path, *, bound: bool = False) -> Any:
    """The process; what it prints goes to `log`.  With `bound`, modes of files count also where it is root's."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=_train, args=(arguments, str(log), bound))
    process.start()
    return process


def _train(arguments: list[str], log: str, bound: bool) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    if bound and os.geteuid() == 0:
        _write_by_mode()
    torch.set_num_threads(1)
    sys.argv = ["reftune", "train", *arguments]
    run()


def _write_by_mode() -> None:
    """Lay down root's right to write anywhere (see capset(2)); its other rights stay."""
    libc = ctypes.CDLL(None, use_errno=True)
    # version 3, this process; effective, permitted and inheritable, of 32 rights each time
    header, rights = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, rights) == 0
    for i in range(3):
        rights[i] &= ~(1 << CAP_DAC_OVERRIDE)
    assert libc.capset(header, rights) == 0
