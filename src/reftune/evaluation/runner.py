"""Answers of a model to the rows of a task, and their score.

Must not know: training, the command line.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..files import append_line, read_lines, write_lines
from ..generation import TextEngine, generate_batches
from .scores import bootstrap
from .tasks.base import Given, Row, Task

__all__ = ["TaskResult", "evaluate_rows", "score_examples", "score_pairs"]


@dataclass(frozen=True)
class TaskResult:
    """Score of a task with its 95 % interval (bootstrap over the rows), and what each row got."""

    task: str
    metric: str
    n: int
    score: float | None
    """None where the outputs need a judge (`reftune judge`)."""
    low: float | None
    high: float | None
    unreadable: int
    """Rows in whose output no answer was found."""
    seconds: float
    examples: list[dict[str, Any]]
    details: dict[str, Any] = field(default_factory=dict)
    """What the task tells beside the score, such as precision and recall of each label."""

    def summary(self) -> dict[str, Any]:
        """All but the rows, and details where there are some."""
        left_out = {"examples"} if self.details else {"examples", "details"}
        return {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in left_out}


def evaluate_rows(
    model: PeftModel | PreTrainedModel | TextEngine,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    rows: Sequence[Row],
    *,
    batch_size: int | None = None,
    file: Path | None = None,
    progress: Callable[[int], None] | None = None,
    **generation: Any,
) -> TaskResult:
    """Generate an output for each row, read the answers, score them.

    With `file` every example is written there as a JSON line as soon as it is done, and rows that the file has already,
    with the same prompt, are not done again; others that it has stay.  Arguments in `generation` go before the task's
    own.  Without `batch_size`, batches grow to what the memory of an accelerator holds; an engine in place of a model
    has its own ways.
    """
    start = time.perf_counter()
    prompts = [dict(task.prompt(row)) for row in rows]
    done = _already(file, task, rows, prompts)
    left = [i for i, row in enumerate(rows) if row["id"] not in done]
    if progress is not None:
        progress(len(done))
    arguments = {**task.generation, **generation}
    asked: Sequence[Any] = [prompts[i] for i in left]
    if isinstance(model, nn.Module):
        batches = generate_batches(model, tokenizer, asked, batch_size=batch_size, **arguments)
    else:
        batches = model.batches(asked, batch_size=batch_size, **arguments)
    for batch in batches:
        for index, output in batch:
            row = rows[left[index]]
            example = _example(task, row, prompts[left[index]], output)
            done[row["id"]] = example
            if file is not None:
                append_line(file, example)
        if progress is not None:
            progress(len(done))
    examples = [done[row["id"]] for row in rows]
    if file is not None:
        write_lines(file, sorted([*examples, *_others(file, task, rows)], key=lambda example: example["id"]))
    return score_examples(task, examples, seconds=time.perf_counter() - start)


def score_examples(task: Task, examples: list[dict[str, Any]], *, seconds: float = 0.0) -> TaskResult:
    """The score of examples as `evaluate_rows` makes them."""
    pairs = [task.pair(example["answer"], example["reference"]) for example in examples]
    return score_pairs(task, np.array(pairs, dtype=float), examples, seconds=seconds)


def score_pairs(task: Task, pairs: np.ndarray, examples: list[dict[str, Any]], *, seconds: float = 0.0) -> TaskResult:
    """The score of [rows, 2], answers and references as the task's metric takes them."""
    score = low = high = None
    if task.metric is not None:
        score = task.score(pairs)
        low, high = bootstrap(task.metric, pairs)
    return TaskResult(
        task=task.name,
        metric="" if task.metric is None else task.metric.name,
        n=len(examples),
        score=score,
        low=low,
        high=high,
        unreadable=sum(example["answer"] is None for example in examples),
        seconds=seconds,
        examples=examples,
        details=({"scored_as": task.score_form} if task.score_form else {})
        | ({} if task.details is None else task.details(examples)),
    )


def _example(task: Task, row: Row, prompt: dict[str, Any], output: str) -> dict[str, Any]:
    answer, reference = task.extract(output), task.reference(row)
    kept = {name: row[name] for name in ("instruction", "dataset") if name in row and task.metric is None}
    example = {"id": row["id"], "prompt": _text(prompt), "output": output, "answer": answer, "reference": reference}
    return {**kept, **example, "right": task.is_right(answer, reference)}


def _text(prompt: dict[str, Any]) -> str:
    return prompt["prompt"] if isinstance(prompt.get("prompt"), str) else json.dumps(prompt, ensure_ascii=False)


def _already(file: Path | None, task: Task, rows: Sequence[Row], prompts: list[dict[str, Any]]) -> dict[Any, Any]:
    """Examples of an earlier run of the same rows; what was written is read and scored anew, by today's answers."""
    if file is None:
        return {}
    wanted = {row["id"]: (row, prompt) for row, prompt in zip(rows, prompts, strict=True)}
    found: dict[Any, Any] = {}
    for line in read_lines(file):
        row, prompt = wanted.get(line.get("id"), ({}, {}))
        if row and line.get("prompt") == _text(prompt) and isinstance(line.get("output"), str):
            found[row["id"]] = _example(task, row, prompt, line["output"])
    return found


def _others(file: Path, task: Task, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Examples of other rows, as where fewer are asked for now; of a file of one's own those that it still has."""
    wanted = {row["id"] for row in rows}
    others = [line for line in read_lines(file) if "id" in line and line["id"] not in wanted]
    source = task.sources.get("test")
    if not isinstance(source, Given):
        return others
    there = {row["id"]: _text(dict(task.prompt(row))) for row in source.rows}
    return [line for line in others if there.get(line["id"]) == line.get("prompt")]
