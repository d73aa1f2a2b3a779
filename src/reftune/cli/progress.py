"""The progress of a training run.  It loads transformers: verbs import it when they begin.

Must not know: verbs.
"""

from __future__ import annotations

from typing import Any

from rich.console import Console
from transformers import TrainerCallback

from .output import progress_bars

__all__ = ["TrainingProgress"]


class TrainingProgress(TrainerCallback):
    """Trainer's steps and loss as a progress bar of ours.  Use it in `with`, which gives the cursor back."""

    def __init__(self, console: Console) -> None:
        self.progress = progress_bars(console)
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
