"""What commands print: progress and tables on stderr or the terminal, one JSON object on stdout with --json."""

from __future__ import annotations

import json
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
from transformers import TrainerCallback
from transformers.utils import logging as transformers_logging

__all__ = ["JsonFlag", "TrainingProgress", "bar", "consoles", "emit", "quiet_libraries", "say"]

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


def quiet_libraries() -> None:
    """No progress bars but ours."""
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


@contextmanager
def bar(console: Console, what: str, total: int) -> Iterator[Any]:
    """A progress bar; yields a function of the number done."""
    with _progress(console) as progress:
        task = progress.add_task(what, total=total, note="")
        yield lambda done: progress.update(task, completed=done)


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    left = (TextColumn("[dim]left[/dim]"), TimeRemainingColumn())
    return Progress(*columns, *left, TextColumn("{task.fields[note]}"), console=console)


class TrainingProgress(TrainerCallback):
    """Trainer's steps and loss as a progress bar of ours.  Use it in `with`, which gives the cursor back."""

    def __init__(self, console: Console) -> None:
        self.progress = _progress(console)
        self.task: Any = None
        self.filling: Any = None

    def __enter__(self) -> TrainingProgress:
        return self

    def __exit__(self, *error: object) -> None:
        # one that never began would still print an empty line
        if self.progress.live.is_started:
            self.progress.stop()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress.start()
        self.task = self.progress.add_task("training", total=state.max_steps, completed=state.global_step, note="")

    def on_fill(self, done: int, total: int) -> None:
        """How much of what training cannot change is computed."""
        if self.filling is None:
            self.filling = self.progress.add_task("frozen prefix", total=total, note="")
        self.progress.update(self.filling, completed=done, visible=done < total)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress.update(self.task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs and self.task is not None:
            self.progress.update(self.task, note=f"loss {float(logs['loss']):.4f}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress.stop()
