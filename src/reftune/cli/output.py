"""What commands print: progress and tables on stderr or the terminal, one JSON object on stdout with --json."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

__all__ = [
    "JsonFlag",
    "bar",
    "bars",
    "consoles",
    "emit",
    "has_colours",
    "load_package",
    "our_errors_only",
    "progress_bars",
    "quiet_libraries",
    "say",
]

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else there.")]


def command() -> str:
    """How this command is called from here: by its name, or by its path where the name is not found."""
    if shutil.which("reftune"):
        return "reftune"
    return min(sys.argv[0], os.path.relpath(sys.argv[0]), key=len)


def consoles(as_json: bool) -> tuple[Console, Console]:
    """(for results, for progress).  With --json both are stderr."""
    # emoji=False: what a model writes is printed as it is, and it may write :smile:
    quiet = not is_first_process()
    progress = Console(stderr=True, emoji=False, highlight=False, quiet=quiet)
    return (progress if as_json else Console(emoji=False, highlight=False, quiet=quiet), progress)


def is_first_process() -> bool:
    """Of several that `accelerate launch` or `torchrun` started, one speaks."""
    return os.environ.get("RANK", "0") == "0"


def say(console: Console, text: str, *, style: str = "") -> None:
    """Print what a user or a model wrote: no markup in it, and no line breaks but its own."""
    console.print(Text(text, style=style), soft_wrap=True)


def emit(result: dict[str, Any]) -> None:
    """The one object of --json."""
    if not is_first_process():
        return
    # records have dates and halves of surrogate pairs in columns that nobody looked at
    text = json.dumps(_finite(result), ensure_ascii=False, allow_nan=False, default=str)
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        text = json.dumps(json.loads(text))
    sys.stdout.write(text + "\n")


def _finite(value: Any) -> Any:
    """JSON has no NaN: null in its place."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def load_package() -> None:
    """Run `reftune/__init__`, which registers ReFT with PEFT, if `reftune_command` has put that off."""
    package = sys.modules["reftune"]
    if not hasattr(package, "register"):
        assert package.__spec__ is not None and package.__spec__.loader is not None
        package.__spec__.loader.exec_module(package)


def quiet_libraries() -> None:
    """No progress bars but ours."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


def has_colours(console: Console) -> bool:
    """Whether what is marked is seen by its colour: not in a pipe, nor with NO_COLOR."""
    return console.is_terminal and console.color_system is not None and not console.no_color


@contextmanager
def our_errors_only() -> Iterator[None]:
    """No warnings and lines of our own logger, until the end of the block."""
    logger = logging.getLogger("reftune")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def bar(console: Console, what: str, total: int) -> Iterator[Any]:
    """A progress bar; yields a function of the number done."""
    with progress_bars(console) as progress:
        task = progress.add_task(what, total=total, note="")
        yield lambda done: progress.update(task, completed=done)


@contextmanager
def bars(console: Console) -> Iterator[Any]:
    """Progress bars that come as they are named; yields a function of a name, the number done, and the total."""
    with progress_bars(console) as progress:
        tasks: dict[str, Any] = {}

        def update(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total, note="")
            progress.update(tasks[what], completed=done)

        yield update


def progress_bars(console: Console) -> Progress:
    """Our progress bars, with a note after the time that is left."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    left = (TextColumn("[dim]left[/dim]"), TimeRemainingColumn())
    return Progress(*columns, *left, TextColumn("{task.fields[note]}"), console=console)
