"""What the answers of runs to single rows tell: samples of each method, and whether each differs from the best.

Must not know: how runs are done, how this is shown.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from ..evaluation.own.beside import asked_text, spread
from ..evaluation.paired import paired
from ..evaluation.tasks.base import Task
from ..files import read_lines

__all__ = ["paired_of", "samples_of"]

SAMPLES = 10
# Of a prompt the end is kept, where what is asked stands; of an answer the beginning.
LONGEST = 400

Entry: TypeAlias = Mapping[str, Any]


def samples_of(tasks: Sequence[Task], runs: Sequence[Entry], output: Path) -> dict[str, list[dict[str, Any]]]:
    """By task: ten rows, the same for all methods, with what each answered in the first of its trainings."""
    found: dict[str, list[dict[str, Any]]] = {}
    for task in tasks:
        lines = {name: _lines(group[0], task, output) for name, group in _groups(task, runs).items()}
        lines = {name: by_id for name, by_id in lines.items() if by_id}
        # a classifier's answers are numbers of classes
        texts = [by_id for by_id in lines.values() if all("output" in line for line in by_id.values())]
        shared = [row for row in next(iter(texts), {}) if all(row in by_id for by_id in texts)]
        if len(texts) != len(lines) or not shared:
            continue
        found[task.name] = [
            {
                "row": row,
                "prompt": _end(asked_text(texts[0][row]["prompt"])),
                "wanted": _start(str(texts[0][row]["reference"])),
                "answers": {
                    name: {"output": _start(by_id[row]["output"]), "right": by_id[row]["right"]}
                    for name, by_id in lines.items()
                },
            }
            for row in spread(shared, SAMPLES)
        ]
    return found


def paired_of(tasks: Sequence[Task], runs: Sequence[Entry], output: Path) -> dict[str, dict[str, Any]]:
    """By task: the method with the highest score, and every other beside it on the same rows."""
    found: dict[str, dict[str, Any]] = {}
    for task in tasks:
        groups = _groups(task, runs)
        if task.metric is None or len(groups) < 2:
            continue
        scores = {name: statistics.fmean(e["scores"][task.name]["score"] for e in es) for name, es in groups.items()}
        best = max(scores, key=lambda name: scores[name])
        answers = {name: [_pairs(entry, task, output) for entry in group] for name, group in groups.items()}
        others = {}
        for name in groups:
            if name != best and all(answers[name]) and all(answers[best]):
                test = paired(task.metric, answers[best], answers[name])
                others |= {} if test is None else {name: test.values()}
        if others:
            found[task.name] = {"best": best, "others": others}
    return found


def _groups(task: Task, runs: Sequence[Entry]) -> dict[str, list[Entry]]:
    """Runs with a score on a task, by label."""
    found: dict[str, list[Entry]] = {}
    for entry in runs:
        if entry["scores"].get(task.name, {}).get("score") is not None or (
            task.metric is None and task.name in entry["scores"]
        ):
            found.setdefault(entry["label"], []).append(entry)
    return found


def _lines(entry: Entry, task: Task, output: Path) -> dict[Any, dict[str, Any]]:
    """Examples of a run by their row; of a set in halves those that are reported."""
    lines = read_lines(output / "runs" / entry["key"] / f"{task.name}.jsonl")
    return {line["id"]: line for line in lines if "answer" in line and line.get("half") != "chooses"}


def _pairs(entry: Entry, task: Task, output: Path) -> dict[Any, tuple[float, float]]:
    lines = _lines(entry, task, output)
    if any("half" in line for line in lines.values()):
        return {row: (float(line["answer"]), float(line["reference"])) for row, line in lines.items()}
    return {row: task.pair(line["answer"], line["reference"]) for row, line in lines.items()}


def _start(text: str) -> str:
    text = text.strip()
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _end(text: str) -> str:
    text = text.strip()
    return text if len(text) <= LONGEST else f"…{text[-LONGEST:]}"
