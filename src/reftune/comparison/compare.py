"""A comparison from its configuration to `results.json`: every run in a process of its own, kept by its settings.

Must not know: what a run does, how results are shown.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..evaluation.data import DATA_VARIABLE
from ..evaluation.engines import check_engine
from ..evaluation.tasks.base import Task
from ..files import key_of, read_json, write_json
from ..models import check_model, fingerprint, refuse_encoder
from ..reporting.machine import hardware, versions
from .answers import paired_of, samples_of
from .methods import METHODS
from .rows import ROW_SETTINGS, refuse_others, rows_of_run
from .study import Run, StudyConfig, runs_of
from .trained import ADAPTER, TRAINED
from .worker import WITH_PARENT

__all__ = ["compare", "results_of"]

Say = Callable[[Run, int, int, str, dict[str, Any]], None]


def compare(
    config: StudyConfig,
    output: Path,
    *,
    data_dir: str | None = None,
    engine: str = "auto",
    command: str = "",
    say: Say | None = None,
    keep_going: bool = True,
) -> dict[str, Any]:
    """Do the runs that are not done yet, and write `results.json`.

    A run's folder is `runs/<hash of its settings>`; what is in it already is not done again, by whatever comparison it
    was made.  A run that fails is told in the results, and tried again the next time.  `say(run, index, count, what,
    entry)` is told when a run begins (`"start"`), and `"done"`, `"kept"` or `"failed"`; the entry is the run's in the
    results.

    Raises:
        ReftuneError: there is no such model, a data file is missing, or a run that is kept was done on other rows.
    """
    runs = runs_of(config)
    check_engine(engine)
    check_before(runs, output, data_dir)

    def tell(run: Run, index: int, what: str) -> None:
        if say is not None:
            say(run, index, len(runs), what, entry_of(run, output / "runs" / run.key))

    for index, run in enumerate(runs):
        folder = output / "runs" / run.key
        if (folder / "result.json").is_file():
            tell(run, index, "kept")
            continue
        tell(run, index, "start")
        worked = in_process(run, folder, data_dir, engine)
        # after every run, so that what is there can be looked at
        write_json(output / "results.json", results_of(config, output, command=command, answers=False))
        tell(run, index, "done" if worked else "failed")
        if not worked and not keep_going:
            break
    results = results_of(config, output, command=command)
    write_json(output / "results.json", results)
    return results


def check_before(runs: Sequence[Run], output: Path, data_dir: str | None) -> None:
    """What would fail in every run fails here, before the first; and what is kept must be of the same rows.

    Raises:
        ReftuneError: as in `compare`.
    """
    keys: dict[str, str | DataError] = {}
    models: set[tuple[str, str]] = set()
    files = fingerprint(runs[0].settings["model"])
    for run in runs:
        folder, settings = output / "runs" / run.key, run.settings
        kept = (folder / "result.json").is_file()
        model = (settings["model"], settings["kind"])
        if not kept and model not in models:
            found_config = check_model(model[0])
            if model[1] == "text":
                refuse_encoder(model[0], found_config)
            models.add(model)
        what = key_of([METHODS[run.method].trains, *(settings[name] for name in ROW_SETTINGS)])
        if what not in keys:
            try:
                keys[what] = rows_of_run(settings, data_dir).key
            except DataError as error:
                keys[what] = error
        found = keys[what]
        if isinstance(found, str):
            refuse_others(folder, {"rows": found, "model_files": files})
        elif not kept:
            raise found


def in_process(run: Run, folder: Path, data_dir: str | None, engine: str) -> bool:
    """Whether it came to its end; what it said is in `log.txt`."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / "settings.json"
    write_json(settings, run.settings)
    command = [sys.executable, "-m", "reftune.comparison.worker", str(settings), str(folder), engine, WITH_PARENT]
    data = {} if data_dir is None else {DATA_VARIABLE: data_dir}
    with (
        (folder / "log.txt").open("w", encoding="utf-8") as log,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **data}
        ) as process,
    ):
        # its standard input stays open as long as this process lives
        code = process.wait()
    return code == 0 and (folder / "result.json").is_file()


def results_of(config: StudyConfig, output: Path, *, command: str = "", answers: bool = True) -> dict[str, Any]:
    """`results.json`: the comparison, what it ran on, and what each run found, or why it did not.

    With `answers` also what the answers to single rows tell: samples, and each method beside the best.
    """
    runs, tasks = runs_of(config), config.parsed_tasks()
    found = [entry_of(run, output / "runs" / run.key) for run in runs]
    budget = {"kind": "epochs", "value": config.epochs}
    if config.seconds is not None:
        budget = {"kind": "seconds", "value": config.seconds}
    return {
        "title": config.title,
        "command": command,
        "date": date.today().isoformat(),
        "hardware": hardware(),
        "versions": versions(),
        "model": config.model,
        "kind": config.kind,
        "budget": budget,
        "held_out": config.held_out,
        "tasks": {task.name: _task_entry(task, found) for task in tasks},
        **({"samples": samples_of(tasks, found, output), "paired": paired_of(tasks, found, output)} if answers else {}),
        "tried": config.tried,
        "config": asdict(config),
        "runs": found,
    }


def entry_of(run: Run, folder: Path) -> dict[str, Any]:
    """A run's entry in `results.json`."""
    entry = {
        "method": run.method,
        "label": run.label,
        "train_task": run.train_task,
        "seed": run.seed,
        "key": run.key,
        "settings": run.settings,
        "command": f"python -m reftune.comparison.worker runs/{run.key}/settings.json runs/{run.key}",
    }
    file = folder / "result.json"
    if file.is_file():
        trained = [f"runs/{run.key}/{name}" for name in (ADAPTER, TRAINED) if (folder / name).exists()]
        return {**entry, **({"trained": trained[0]} if trained else {}), **read_json(file)}
    return {**entry, "scores": {}, "error": why(folder / "log.txt")}


def why(log: Path) -> str:
    """The last words of a run that came to no end."""
    if not log.is_file():
        return "not run"
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it ended without a word; was it killed for memory?"


def _task_entry(task: Task, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    name = task.name
    tested = [run["scores"][name]["n"] for run in runs if name in run["scores"]]
    trained = [run["train_rows"][name] for run in runs if name in run.get("train_rows", {})]
    return {
        "title": task.title,
        "metric": "" if task.metric is None else task.metric.name,
        "chance": task.chance,
        "train_rows": max(trained, default=0),
        "test_rows": max(tested, default=0),
        **({"notes": list(task.notes)} if task.notes else {}),
    }
