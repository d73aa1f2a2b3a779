"""The typer application: the verbs, and how errors and exit codes come out.

Exit codes: 0 done; 1 something that the user can mend, told in one line; 2 wrong usage; 130 interrupted.
With REFTUNE_DEBUG set, errors keep their traceback.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from ..errors import ReftuneError
from . import (
    chat,
    compare,
    compose,
    convert,
    demo,
    evaluate,
    explain,
    export,
    generate,
    init,
    jobs,
    judge,
    lm_eval,
    memorise,
    merge,
    plugin,
    push,
    search,
    serve,
    show,
    split_turns,
    steer,
    train,
    transfer,
    trl,
    with_reft,
)
from .output import load_package

__all__ = ["app", "run"]

INTERRUPTED = 130

app = typer.Typer(
    name="reftune",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"reftune {version('reftune')}")
        raise typer.Exit


@app.callback()
def options(
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Representation finetuning (ReFT): train, try and inspect adapters of language models."""


class Verb(TyperCommand):
    """A verb whose arguments are right begins by loading the package."""

    def invoke(self, ctx: Any) -> Any:
        load_package()
        return super().invoke(ctx)


app.command("demo", cls=Verb)(demo.demo)
app.command("train", cls=Verb)(train.train)
app.command("push")(push.push)
app.command("generate", cls=Verb)(generate.generate)
app.command("chat", cls=Verb)(chat.chat)
app.command("eval", cls=Verb)(evaluate.evaluate)
app.command("compare", cls=Verb)(compare.compare)
app.command("compose", cls=Verb)(compose.compose)
app.command("search", cls=Verb)(search.search)
app.command("judge", cls=Verb)(judge.judge)
app.command("merge", cls=Verb)(merge.merge)
app.command("explain", cls=Verb)(explain.explain)
app.command("memorise", cls=Verb)(memorise.memorise)
app.command("split-turns", cls=Verb)(split_turns.split_turns)
app.command("steer", cls=Verb)(steer.steer)
app.command("transfer", cls=Verb)(transfer.transfer)
# loads the package where it must
app.command("show")(show.show)
app.command("init")(init.init)
app.command("plugin")(plugin.plugin)
app.add_typer(convert.app, name="convert")
app.add_typer(export.app, name="export")
app.add_typer(jobs.app, name="jobs")
# all that is not known here goes on to the server, the harness, TRL; the server's arguments are looked at in its verb
PASSING: dict[str, Any] = {
    "add_help_option": False,
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True},
}
app.command("serve", **PASSING)(serve.serve)
app.command("lm-eval", cls=Verb, **PASSING)(lm_eval.lm_eval)
app.command("trl", **PASSING)(trl.trl)
app.command("with", **PASSING)(with_reft.with_reft)


def run() -> None:
    """Run the application; errors that users can mend are one line on stderr, others keep their traceback."""
    try:
        app()
    except (KeyboardInterrupt, SystemExit) as end:
        # typer makes an exit of an interruption, without a word
        if isinstance(end, SystemExit) and end.code != INTERRUPTED:
            raise
        typer.echo(
            "reftune: interrupted; train goes on from its last checkpoint with --resume, others by themselves", err=True
        )
        sys.exit(INTERRUPTED)
    except (ReftuneError, ValueError, OSError) as error:
        if os.environ.get("REFTUNE_DEBUG"):
            raise
        typer.echo(f"reftune: {' '.join(str(error).split()) or type(error).__name__}", err=True)
        sys.exit(1)
