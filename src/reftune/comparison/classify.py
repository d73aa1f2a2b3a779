"""The GLUE protocol of the paper, on encoders with a classification head that is trained too.

The rows to score are split in half by the seed of the run.  After each epoch all of them are classified; the best epoch
on one half is what is kept and reported on the other.

Must not know: comparisons, reports, generation.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, set_seed

from ..errors import ReftuneError
from ..evaluation.own import task_of
from ..evaluation.runner import TaskResult, score_pairs
from ..evaluation.scores import bootstrap
from ..evaluation.tasks.base import Classes, Row, Task
from ..files import write_json, write_lines
from ..models import load_classifier
from .fit import Clock, timed, training_arguments
from .methods import METHODS, trained_state
from .rows import RunRows
from .trained import save_trained, size_of

__all__ = ["classify", "classify_rows", "halves", "run_classes"]


class Epochs(TrainerCallback):
    """Classifies the rows after each epoch and keeps the trained parameters of the best."""

    def __init__(
        self, model: Any, tokenizer: Any, task: Task, rows: Sequence[Row], settings: Mapping[str, Any]
    ) -> None:
        self.model, self.tokenizer, self.task, self.rows = model, tokenizer, task, rows
        self.how = {"batch_size": settings["eval_batch_size"], "max_length": settings["max_length"]}
        self.chosen, self.reported = halves(len(rows), settings["seed"])
        self.scores: list[tuple[float, float]] = []
        """(on the half that chooses, on the half that is reported) of each epoch"""
        self.best: tuple[float, np.ndarray, dict[str, Tensor]] | None = None
        self.seconds = self.cpu_seconds = 0.0

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        clock = Clock()
        pairs = pairs_of(self.model, self.tokenizer, self.task, self.rows, **self.how)
        first, second = self.task.score(pairs[self.chosen]), self.task.score(pairs[self.reported])
        self.scores.append((first, second))
        if self.best is None or first > self.best[0]:
            self.best = (first, pairs, {name: value.clone() for name, value in trained_state(self.model).items()})
        self.model.train()
        self.seconds += clock.seconds
        self.cpu_seconds += clock.cpu_seconds


def run_classes(settings: dict[str, Any], folder: Path, run_rows: RunRows) -> dict[str, Any]:
    """One run of a comparison of `kind="classes"`: its part of `results.json`."""
    task = task_of(settings["tasks"][0])
    method = METHODS[settings["method"]]
    rows = run_rows.test[task.name]
    assert task.classes is not None
    if len(rows) < 2:
        raise ReftuneError(f"{task.name}: {len(rows)} rows cannot be split in half; score at least two")
    # the head is drawn anew: the seed is part of the model
    set_seed(settings["seed"])
    labels = len(task.classes.names) or 1
    model, tokenizer = load_classifier(settings["model"], labels=labels, dtype=settings["dtype"])
    model = method.apply(model, settings["config"], "SEQ_CLS")
    epochs = Epochs(model, tokenizer, task, rows, settings)
    if not method.trains:
        epochs.on_epoch_end(None, None, None)
        measured: dict[str, Any] = {}
    else:
        measured = train_classes(model, tokenizer, task.classes, run_rows.train[task.name], settings, folder, epochs)
    assert epochs.best is not None and task.metric is not None
    _, pairs, state = epochs.best
    model.load_state_dict(state, strict=False)
    if method.trains:
        save_trained(model, folder)
    reported = pairs[epochs.reported]
    low, high = bootstrap(task.metric, reported)
    score = {
        "task": task.name,
        "metric": task.metric.name,
        "n": len(reported),
        "score": task.score(reported),
        "low": low,
        "high": high,
        "seconds": epochs.seconds,
        "best_epoch": int(np.argmax([first for first, _ in epochs.scores])) + 1,
        "epochs": epochs.scores,
    }
    write_lines(folder / f"{task.name}.jsonl", lines_of(task, rows, pairs, epochs.reported))
    write_json(folder / "fit.json", measured)
    counts = {name: len(found) for name, found in run_rows.train.items()}
    return {**size_of(model, folder), **measured, "train_rows": counts, "scores": {task.name: score}}


def train_classes(
    model: Any,
    tokenizer: Any,
    classes: Classes,
    rows: Sequence[Row],
    settings: dict[str, Any],
    folder: Path,
    epochs: Epochs,
) -> dict[str, Any]:
    """Train with transformers' Trainer; what it took, without the classification after each epoch."""
    columns = encoded(tokenizer, classes, rows, settings["max_length"])
    columns["labels"] = [classes.label(row) if classes.is_regression else int(classes.label(row)) for row in rows]
    clock = Clock()
    trainer = Trainer(
        model=model,
        args=training_arguments(settings, folder / "checkpoints"),
        train_dataset=Dataset.from_dict(columns),
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=[clock, epochs],
    )
    found = timed(trainer, clock)
    found.train_seconds -= epochs.seconds
    if found.cpu_seconds is not None:
        found.cpu_seconds -= epochs.cpu_seconds
    return asdict(found)


def classify_rows(
    model: Any, tokenizer: Any, task: Task, rows: Sequence[Row], *, batch_size: int = 32, file: Path | None = None
) -> TaskResult:
    """The score of a classifier on all rows; with `file` a JSON line for each."""
    start = time.perf_counter()
    pairs = pairs_of(model, tokenizer, task, rows, batch_size=batch_size)
    examples = [
        {"id": row["id"], "answer": answer, "reference": reference, "right": answer == reference}
        for row, (answer, reference) in zip(rows, pairs.tolist(), strict=True)
    ]
    if file is not None:
        write_lines(file, examples)
    return score_pairs(task, pairs, examples, seconds=time.perf_counter() - start)


def halves(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the half that chooses the epoch and of the half that is reported, each in order."""
    order = np.random.default_rng(seed).permutation(count)
    middle = count // 2
    return np.sort(order[:middle]), np.sort(order[middle:])


def encoded(tokenizer: Any, classes: Classes, rows: Sequence[Row], max_length: int | None) -> dict[str, Any]:
    """Token ids and masks of the texts; what is too long is cut at its end."""
    texts = [classes.texts(row) for row in rows]
    first = [text for text, _ in texts]
    second = None if texts and texts[0][1] is None else [str(text) for _, text in texts]
    return dict(tokenizer(first, second, truncation=True, max_length=max_length, return_token_type_ids=True))


def pairs_of(model: Any, tokenizer: Any, task: Task, rows: Sequence[Row], **how: Any) -> np.ndarray:
    """[rows, 2]: what the model says and what is right, as numbers."""
    assert task.classes is not None
    found = classify(model, tokenizer, task.classes, rows, **how)
    return np.stack([found, [float(task.classes.label(row)) for row in rows]], axis=1)


@torch.inference_mode()
def classify(
    model: Any,
    tokenizer: Any,
    classes: Classes,
    rows: Sequence[Row],
    *,
    batch_size: int = 32,
    max_length: int | None = 512,
) -> np.ndarray:
    """[rows]: index of the class, or the value of a regression; rows of similar length together."""
    model.eval()
    columns = encoded(tokenizer, classes, rows, max_length)
    lengths = [len(ids) for ids in columns["input_ids"]]
    order = sorted(range(len(rows)), key=lambda i: lengths[i])
    found = np.zeros(len(rows))
    collate = DataCollatorWithPadding(tokenizer)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch: Any = collate([{name: column[i] for name, column in columns.items()} for i in chosen])
        logits = model(**batch.to(model.device)).logits.float()
        found[chosen] = (logits[:, 0] if classes.is_regression else logits.argmax(-1)).cpu().numpy()
    return found


def lines_of(task: Task, rows: Sequence[Row], pairs: np.ndarray, reported: np.ndarray) -> list[dict[str, Any]]:
    """A JSON line per row, which half it was in told."""
    inside = set(reported.tolist())
    return [
        {"id": row["id"], "answer": pair[0], "reference": pair[1], "half": "reported" if i in inside else "chooses"}
        for i, (row, pair) in enumerate(zip(rows, pairs.tolist(), strict=True))
    ]
