"""Training of any method on records of tasks, measured: time, memory, losses.

Must not know: comparisons, reports.
"""

from __future__ import annotations

import logging
import resource
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from ..data import build_dataset
from ..errors import ReftuneError
from ..training import ReftTrainer

logger = logging.getLogger("reftune")

__all__ = ["Clock", "Fit", "fit", "timed", "training_arguments"]

# Nobody waits for so many passes: where the budget is time, the clock ends the training.
MANY_EPOCHS = 1000
DEFAULTS: dict[str, Any] = {
    "lr_scheduler_type": "linear",
    "weight_decay": 0.0,
    "logging_steps": 5,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}


@dataclass
class Fit:
    """What a training took."""

    train_seconds: float
    """All of it, the preparation included."""
    prepare_seconds: float
    """Of these, to compute what training cannot change."""
    cpu_seconds: float | None
    """Of all threads, which other work on the machine hardly lengthens; where a GPU computes, none."""
    steps: int
    epochs: float
    peak_memory_mb: float
    curve: list[tuple[int, float, float]] = field(default_factory=list)
    """(step, seconds since the start, mean loss since the last entry)"""


class Clock(TrainerCallback):
    """Time of a training, and its end where the time is what is given."""

    def __init__(self, limit: float | None = None) -> None:
        self.limit = limit
        self.prepared = 0.0
        self.begin()
        self.curve: list[tuple[int, float, float]] = []

    def begin(self) -> None:
        self.start, self.cpu_start = time.perf_counter(), time.process_time()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.start

    @property
    def cpu_seconds(self) -> float:
        return time.process_time() - self.cpu_start

    def on_fill(self, done: int, total: int) -> None:
        self.prepared = self.seconds

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.curve.append((state.global_step, round(self.seconds, 3), float(logs["loss"])))
            logger.info("step %d of %d, loss %.4f", state.global_step, state.max_steps, float(logs["loss"]))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.limit is not None and self.seconds >= self.limit:
            control.should_training_stop = True


class TimedTrainer(ReftTrainer):
    """`ReftTrainer` whose learning rate rises and falls with the clock, as linear schedules do with the steps.

    `warmup_steps` is a share of the time, below 1.
    """

    clock: Clock

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        limit = self.clock.limit
        assert limit is not None
        warmup = self.args.warmup_steps * limit

        def factor(step: int) -> float:
            seconds = self.clock.seconds
            if seconds < warmup:
                return seconds / warmup
            return max(0.0, (limit - seconds) / max(limit - warmup, 1e-9))

        chosen: Any = self.optimizer if optimizer is None else optimizer
        self.lr_scheduler = LambdaLR(chosen, factor)
        return self.lr_scheduler


def training_arguments(settings: dict[str, Any], folder: Path, **more: Any) -> TrainingArguments:
    """Trainer's arguments for the settings of a run.

    Raises:
        ReftuneError: transformers refuses them.
    """
    given = {**DEFAULTS, **more, **settings["training"]}
    given.setdefault("num_train_epochs", settings["epochs"] or MANY_EPOCHS)
    given.setdefault("per_device_train_batch_size", settings["batch_size"])
    given.setdefault("use_cpu", not torch.cuda.is_available() and not torch.backends.mps.is_available())
    if settings["seconds"] is not None and given.get("warmup_steps", 0) >= 1:
        raise ReftuneError("where the budget is seconds, warmup_steps is a share of them below 1")
    try:
        return TrainingArguments(output_dir=str(folder), seed=settings["seed"], **given)
    except (TypeError, ValueError, ImportError) as error:
        raise ReftuneError(f"training is not valid: {error}") from error


def fit(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    records: list[dict[str, Any]],
    settings: dict[str, Any],
    folder: Path,
) -> Fit:
    """Train `model` on the records by the settings of a run (`study.Run`)."""
    dataset = build_dataset(records, tokenizer, max_length=settings["max_length"])
    clock = Clock(settings["seconds"])
    trainer_class = ReftTrainer if clock.limit is None else TimedTrainer
    trainer = trainer_class(
        model=model,
        args=training_arguments(settings, folder),
        train_dataset=dataset,
        processing_class=tokenizer,
        callbacks=[clock],
        on_fill=clock.on_fill,
    )
    if isinstance(trainer, TimedTrainer):
        trainer.clock = clock
    return timed(trainer, clock)


def timed(trainer: Any, clock: Clock) -> Fit:
    """Train without a word, and what it took by the clock, which is among the trainer's callbacks."""
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    reset_peak_memory()
    clock.begin()
    trainer.train()
    return Fit(
        train_seconds=clock.seconds,
        prepare_seconds=clock.prepared,
        cpu_seconds=clock.cpu_seconds if trainer.args.device.type == "cpu" else None,
        steps=trainer.state.global_step,
        epochs=float(trainer.state.epoch or 0.0),
        peak_memory_mb=peak_memory_mb(),
        curve=clock.curve,
    )


def reset_peak_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory_mb() -> float:
    """The most memory so far: of the device since `reset_peak_memory`, without one of the process since its start."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
