"""`reftune with`: any command, in whose Python processes PEFT knows ReFT."""

from __future__ import annotations

import os
import shutil

import typer

from ..errors import ReftuneError
from .plugin import module_file

__all__ = ["with_reft"]

EXAMPLE = """Run any command so that PEFT knows ReFT in it.

Examples:

    reftune with llamafactory-cli train run.yaml

    reftune with torchrun --nproc_per_node 2 train.py

Every Python process of the command, those that it starts in turn among them,
imports reftune when it imports PEFT; so tools that know nothing of reftune load
and train its adapters. reftune init makes one to begin with.
"""


def with_reft(context: typer.Context) -> None:
    if not context.args or context.args[0] in ("--help", "-h"):
        typer.echo(EXAMPLE)
        raise typer.Exit(0 if context.args else 2)
    words = context.args[1:] if context.args[0] == "--" else context.args
    if shutil.which(words[0]) is None:
        raise ReftuneError(f"there is no command {words[0]!r}; name a program, as in `reftune with python train.py`")
    os.execvpe(words[0], words, environment())


with_reft.__doc__ = EXAMPLE


def environment() -> dict[str, str]:
    """That of this process, with the folder first in which Python finds what to run as it starts."""
    startup = module_file("startup").with_suffix("")
    before = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(startup), *([before] if before else [])])}
