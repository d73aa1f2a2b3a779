"""The typer application: the verbs, and how errors and exit codes come out.

Exit codes: 0 done; 1 something that the user can mend, told in one line; 2 wrong usage; 130 interrupted.
With REFTUNE_DEBUG set, errors keep their traceback.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from ..errors import ReftuneError
from .output import load_package

__all__ = ["VERBS", "app", "run"]

INTERRUPTED = 130


class Begun(TyperCommand):
    """A verb whose arguments are right begins by loading the package."""

    def invoke(self, ctx: Any) -> Any:
        load_package()
        return super().invoke(ctx)


@dataclass(frozen=True)
class Verb:
    """A command whose module is imported when it is chosen, and not before."""

    name: str
    summary: str
    """Its line in the list of all; its module says the rest."""
    module: str = ""
    """By default called as the verb; a function of this name is in it, or an `app` of several commands."""
    loads_package: bool = True
    """False: it does so itself, where it must."""
    passes_on: bool = False
    """All that is not known here goes on to the server, the harness, TRL."""

    @cached_property
    def command(self) -> Any:
        """What typer makes of the module."""
        name = self.module or self.name.replace("-", "_")
        module = import_module(f".{name}", __package__)
        parent = typer.Typer(rich_markup_mode=MARKUP, add_completion=False)
        if hasattr(module, "app"):
            parent.add_typer(module.app, name=self.name)
        else:
            more: dict[str, Any] = {"cls": Begun} if self.loads_package else {}
            if self.passes_on:
                context = {"allow_extra_args": True, "ignore_unknown_options": True}
                more |= {"add_help_option": False, "context_settings": context}
            parent.command(self.name, **more)(getattr(module, name))
        # with a callback a single command stays one of a group
        parent.callback()(lambda: None)
        group: Any = typer.main.get_command(parent)
        return group.commands[self.name]


MARKUP = "rich"
VERBS = {
    verb.name: verb
    for verb in (
        Verb("demo", "Teach SmolLM2 from ten examples to sort a shop's messages."),
        Verb("train", "Train an adapter."),
        Verb("push", "Put an adapter on the Hub.", loads_package=False),
        Verb("generate", "Generate answers with an adapter."),
        Verb("chat", "Talk to an adapter."),
        Verb("eval", "Score an adapter, or a base model, on your own records or on benchmark tasks.", "evaluate"),
        Verb("compare", "Compare methods: train each, score each, write a report."),
        Verb("compose", "Teach one adapter two abilities and switch them on together."),
        Verb("search", "Find layers, positions, rank and learning rate for a task."),
        Verb("judge", "Let a judge model compare answers with a reference."),
        Verb("merge", "Make one adapter of several."),
        Verb("explain", "See what an adapter does."),
        Verb("memorise", "Find out how much one rank-1 edit of one layer can hold."),
        Verb("split-turns", "Write conversations with a row for each answer of the assistant."),
        Verb("steer", "Make a steering vector of two kinds of prompts, without training."),
        Verb("transfer", "Carry an adapter to another model."),
        Verb("show", "Show which layers and tokens an adapter edits.", loads_package=False),
        Verb("init", "Write something to begin with.", loads_package=False),
        Verb("plugin", "Print what a tool's configuration names as its plug-in.", loads_package=False),
        # its own arguments are looked at in its verb
        Verb(
            "serve",
            "Serve a base model and adapters, each under a model name of its own.",
            loads_package=False,
            passes_on=True,
        ),
        Verb("lm-eval", "Run EleutherAI's lm-evaluation-harness with the model reftune.", passes_on=True),
        Verb(
            "trl",
            "Train with TRL's own scripts, sft, dpo or grpo, and a block reft:.",
            loads_package=False,
            passes_on=True,
        ),
        Verb(
            "with", "Run any command so that PEFT knows ReFT in it.", "with_reft", loads_package=False, passes_on=True
        ),
        Verb("convert", "Make an adapter of reftune's of one of another library."),
        Verb("export", "Write an adapter as another program reads it."),
        Verb("jobs", "Fine-tune on a server: upload examples, watch the job, talk to the adapter."),
    )
}


class Verbs(TyperGroup):
    """The verbs by name and summary, until one is chosen: `--help` and completion import none."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.commands = {verb.name: TyperCommand(verb.name, help=verb.summary) for verb in VERBS.values()}

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        return name, command if name is None else VERBS[name].command, rest


app = typer.Typer(
    name="reftune",
    cls=Verbs,
    no_args_is_help=True,
    rich_markup_mode=MARKUP,
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


def run() -> None:
    """Run the application; errors that users can mend are one line on stderr, others keep their traceback."""
    try:
        app()
    except (KeyboardInterrupt, SystemExit) as end:
        # typer makes an exit of an interruption, without a word
        if isinstance(end, SystemExit) and end.code != INTERRUPTED:
            raise
        typer.echo(
            "reftune: interrupted; compare, search, eval, judge and memorise go on where they stopped when they are "
            "called again, train with --resume from its last checkpoint",
            err=True,
        )
        sys.exit(INTERRUPTED)
    except (ReftuneError, ValueError, OSError) as error:
        if os.environ.get("REFTUNE_DEBUG"):
            raise
        typer.echo(f"reftune: {' '.join(str(error).split()) or type(error).__name__}", err=True)
        sys.exit(1)
