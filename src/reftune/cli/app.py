"""The typer application: the verbs, and how errors and exit codes come out.

Exit codes: 0 done; 1 something that the user can mend, told in one line; 2 wrong usage; 130 interrupted.
"""

from __future__ import annotations

import logging
import os
import sys

import typer

from ..errors import ReftuneError
from . import chat, demo, generate, show, train

__all__ = ["app", "run"]

app = typer.Typer(
    name="reftune",
    help="Representation finetuning (ReFT): train, try and inspect adapters of frozen language models.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.command("demo")(demo.demo)
app.command("train")(train.train)
app.command("generate")(generate.generate)
app.command("chat")(chat.chat)
app.command("show")(show.show)


def run() -> None:
    """Run the application; errors that users can mend are one line on stderr, others keep their traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    for noisy in ("transformers", "httpx", "datasets", "torch", "filelock", "fsspec"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except (ReftuneError, ValueError, OSError) as error:
        if os.environ.get("REFTUNE_DEBUG"):
            raise
        typer.echo(f"reftune: {error}", err=True)
        sys.exit(1)
