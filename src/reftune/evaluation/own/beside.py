"""An adapter that was just trained beside its base model, on rows that it was not trained on.

Must not know: training, the command line.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...files import write_json, write_lines
from ..paired import Paired, paired
from ..runner import TaskResult, evaluate_rows
from ..tasks.base import Row, Task

__all__ = ["Beside", "asked_text", "beside_base", "spread"]

SAMPLES = 5


@dataclass(frozen=True)
class Beside:
    """What both got on the same rows."""

    adapter: TaskResult
    base: TaskResult
    test: Paired | None
    samples: list[dict[str, Any]]
    """prompt, wanted, base, adapter"""

    def values(self) -> dict[str, Any]:
        """As --json has it."""
        scores = {"adapter": self.adapter.summary(), "base": self.base.summary()}
        return {"scores": scores, "paired": self.test and self.test.values(), "samples": self.samples}


def beside_base(
    model: Any,
    tokenizer: Any,
    task: Task,
    rows: Sequence[Row],
    *,
    folder: Path,
    batch_size: int = 16,
    progress: Callable[[int], None] | None = None,
) -> Beside:
    """Scores of an adapter and of its base model; the answers of both and the scores are written to `folder`."""
    half = len(rows)
    tell = progress or (lambda done: None)
    adapter = evaluate_rows(model, tokenizer, task, rows, batch_size=batch_size, progress=tell)
    with model.disable_adapter():
        base = evaluate_rows(model, tokenizer, task, rows, batch_size=batch_size, progress=lambda n: tell(half + n))
    found = [{e["id"]: task.pair(e["answer"], e["reference"]) for e in r.examples} for r in (adapter, base)]
    test = None if task.metric is None else paired(task.metric, [found[0]], [found[1]])
    by_id = {example["id"]: example for example in base.examples}
    samples = [
        {
            "prompt": asked_text(example["prompt"]),
            "wanted": example["reference"],
            "base": by_id[example["id"]]["output"],
            "adapter": example["output"],
        }
        for example in spread(adapter.examples, SAMPLES)
    ]
    both = Beside(adapter, base, test, samples)
    for name, result in (("adapter", adapter), ("base", base)):
        write_lines(folder / f"{name}.jsonl", result.examples)
    write_json(folder / "scores.json", both.values())
    return both


def spread(rows: Sequence[Any], count: int) -> list[Any]:
    """So many of the rows, evenly from all over them."""
    if len(rows) <= count:
        return list(rows)
    return [rows[(2 * i + 1) * len(rows) // (2 * count)] for i in range(count)]


def asked_text(prompt: str) -> str:
    """What a person asked, of a prompt as examples have it: a text, or a record as JSON."""
    try:
        record = json.loads(prompt) if prompt.startswith("{") else prompt
    except ValueError:
        return prompt
    if not isinstance(record, Mapping):
        return prompt
    turns = record.get("messages") or record.get("prompt")
    if isinstance(turns, list) and turns:
        return str(turns[-1].get("content") or "")
    if "instruction" in record:
        return "\n".join(text for text in (record["instruction"], record.get("input")) if text)
    return prompt
