"""What commands print: progress and tables on stderr or the terminal, one JSON object on stdout with --json."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback
from transformers.utils import logging as transformers_logging

__all__ = ["JsonFlag", "TrainingProgress", "bar", "consoles", "emit", "quiet_libraries"]

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else there.")]


def consoles(as_json: bool) -> tuple[Console, Console]:
    """(for results, for progress).  With --json both are stderr."""
    progress = Console(stderr=True)
    return (progress if as_json else Console(), progress)


def emit(result: dict[str, Any]) -> None:
    """The one object of --json."""
    json.dump(result, sys.stdout, ensure_ascii=False)
    sys.stdout.write("\n")


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
    return Progress(*columns, TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=console)


class TrainingProgress(TrainerCallback):
    """Trainer's steps and loss as a progress bar of ours."""

    def __init__(self, console: Console) -> None:
        self.progress = _progress(console)
        self.task: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress.start()
        self.task = self.progress.add_task("training", total=state.max_steps, completed=state.global_step, note="")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress.update(self.task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs and self.task is not None:
            self.progress.update(self.task, note=f"loss {float(logs['loss']):.4f}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress.stop()
