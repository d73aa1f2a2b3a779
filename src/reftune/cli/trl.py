"""`reftune trl`: TRL's scripts with ReFT adapters."""

from __future__ import annotations

import typer

from .output import load_package

__all__ = ["trl"]

EXAMPLE = """Train with TRL's own scripts, sft, dpo or grpo, and a block reft:.

Examples:

    reftune trl sft --config run.yaml

    reftune trl dpo --config run.yaml --max_steps 100 --reft '{"r": 4}'

    accelerate launch -m reftune.integrations.trl grpo --config run.yaml

All arguments are those of TRL's script; reftune trl sft --help tells them. The
adapter is what the block reft: says, the fields of ReftConfig.
"""


def trl(context: typer.Context) -> None:
    if not context.args or context.args[0] in ("--help", "-h"):
        typer.echo(EXAMPLE)
        raise typer.Exit(0 if context.args else 2)
    load_package()
    from ..integrations.trl import main

    main(context.args)


trl.__doc__ = EXAMPLE
