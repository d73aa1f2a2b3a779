"""`reftune compare`: methods side by side on the same data, budget and seeds, and a report of it."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ..data.passes import passes
from ..errors import ReftuneError
from ..evaluation.data import task_rows
from ..evaluation.own import tasks_of
from ..evaluation.tasks.base import Given
from ..files import check_writable, read_json, write_json
from .evaluate import ANSWER_HELP, SCORE_HELP, SPLIT_HELP, tell
from .output import JsonFlag, consoles, emit, quiet_libraries, say
from .train import read_yaml

if TYPE_CHECKING:
    from ..comparison.study import Run

__all__ = ["compare"]

EXAMPLE = """Compare methods: train each, score each, write a report.

Examples:

    reftune compare --model smollm2 --tasks sst2 --methods base,loreft,lora
    --train-rows 1000 --test-rows 500 --epochs 2 --data-dir data

    reftune compare --model smollm2 --tasks messages.csv --split 0.2
    --methods base,loreft,lora

    reftune compare recipes/loreft_commonsense.yaml --model my-model
    --data-dir data

Methods: base, loreft, direft, noreft, loreft_published, lora, dora,
prefix_tuning, ia3, bitfit, full, head_only. A YAML file can say more: the
settings of each method, its label, its seeds (docs/evaluation.md). Of files
of records that say no epochs there are as many passes, for all methods, as
reftune train would make.

Every run is kept by its settings: started again, or with more methods, tasks
or seeds, the command does only what is missing.
"""


def compare(
    config: Annotated[Path | None, typer.Argument(help="YAML file, or a recipe.", metavar="CONFIG.yaml")] = None,
    model: Annotated[str | None, typer.Option(help="Folder or Hub name of the base model, or smollm2.")] = None,
    tasks: Annotated[str | None, typer.Option(help="Files of records, tasks and groups, with commas.")] = None,
    train: Annotated[Path | None, typer.Option(help="Of a file: the records to train on.")] = None,
    split: Annotated[float | None, typer.Option(help=f"{SPLIT_HELP} The rest is trained on.")] = None,
    score: Annotated[str | None, typer.Option(help=SCORE_HELP)] = None,
    answer: Annotated[str | None, typer.Option(help=ANSWER_HELP)] = None,
    methods: Annotated[str | None, typer.Option(help="Methods, with commas.")] = None,
    seeds: Annotated[str | None, typer.Option(help="With commas.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the data, for all methods.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Of training, in place of epochs.")] = None,
    train_rows: Annotated[int | None, typer.Option(min=1, help="Rows of each task to train on.")] = None,
    test_rows: Annotated[int | None, typer.Option(min=1, help="Rows of each task to score.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Rows a step.")] = None,
    kind: Annotated[str | None, typer.Option(help="text, or classes for encoders.")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of the data files; else REFTUNE_DATA, else the Hub.")
    ] = None,
    engine: Annotated[str, typer.Option(help="What answers when they are scored: auto, vllm, transformers.")] = "auto",
    output: Annotated[Path, typer.Option(help="Folder for runs, results and report.")] = Path("comparison"),
    report_only: Annotated[bool, typer.Option("--report-only", help="Of the runs that are done.")] = False,
    as_json: JsonFlag = False,
) -> None:
    from ..comparison.compare import compare as do_compare
    from ..comparison.compare import results_of
    from ..comparison.report import write_report
    from ..comparison.study import StudyConfig
    from ..reporting import check_report

    values = read_yaml(config) if config is not None else {}
    given: dict[str, Any] = {
        "model": model,
        "tasks": tasks,
        "methods": None if methods is None else [name.strip() for name in methods.split(",")],
        "seeds": None if seeds is None else numbers(seeds),
        "train_rows": train_rows,
        "test_rows": test_rows,
        "batch_size": batch_size,
        "kind": kind,
    }
    values.update({key: value for key, value in given.items() if value is not None})
    own = {"train": None if train is None else str(train), "split": split, "score": score, "answer": answer}
    if values.get("tasks") is not None and any(value is not None for value in own.values()):
        values["tasks"] = [task.called for task in tasks_of(values["tasks"], **own)]
    if epochs is not None or seconds is not None:
        values.update(epochs=epochs, seconds=seconds)
    check_report()
    check_writable(output)
    results, progress = consoles(as_json)
    quiet_libraries()
    line = shlex.join(["reftune", *sys.argv[1:]])
    if report_only and not values:
        found = read_results(output)
    else:
        missing = [f"--{name}" for name in ("model", "tasks") if values.get(name) is None]
        if missing:
            raise typer.BadParameter(f"give {' and '.join(missing)}, or a file that does")
        study = StudyConfig.from_mapping({**values, **budget_of(values, progress)})
        tell(progress, study.parsed_tasks())
        if report_only:
            found = results_of(study, output, command=line)
            write_json(output / "results.json", found)
        else:
            folder = None if data_dir is None else str(data_dir)
            found = do_compare(study, output, data_dir=folder, engine=engine, command=line, say=Lines(progress, output))
    pages = write_report(found, output)
    failed = [run for run in found["runs"] if run.get("error")]
    if as_json:
        emit({"output": str(output), "report": [str(page) for page in pages], "runs": found["runs"]})
    else:
        say(results, f"Report: {pages[-1]}")
    if failed:
        logs = ", ".join(f"{output / 'runs' / run['key'] / 'log.txt'}" for run in failed)
        first = failed[0]
        raise ReftuneError(
            f"{len(failed)} of {len(found['runs'])} runs are missing; {first['label']} on {first['train_task']}: "
            f"{first['error']} ({logs}); the same command tries them again"
        )


compare.__doc__ = EXAMPLE


def budget_of(values: Mapping[str, Any], console: Console) -> dict[str, Any]:
    """Rows a step and epochs where nothing says how long to train, and all tasks are files with rows to train on."""
    if any(values.get(name) is not None for name in ("epochs", "seconds")):
        return {}
    tasks = tasks_of(values["tasks"])
    if not all(isinstance(task.sources.get("train"), Given) for task in tasks):
        return {}
    fewest = min(len(task_rows(task, "train", limit=values.get("train_rows"))) for task in tasks)
    batch, epochs = passes(fewest, batch=values.get("batch_size"))
    say(console, f"{epochs} passes over {fewest:,} rows in batches of {batch}; --epochs and --batch-size say otherwise")
    return {"epochs": epochs, "batch_size": batch}


def numbers(text: str) -> list[int]:
    """Whole numbers with commas between.

    Raises:
        typer.BadParameter: something else.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of whole numbers such as 42,43,44") from None


def read_results(output: Path) -> dict[str, Any]:
    """What the last comparison in a folder found.

    Raises:
        ReftuneError: there was none.
    """
    file = output / "results.json"
    if not file.is_file():
        raise ReftuneError(f"{str(output)!r} holds no results.json: name the comparison's folder by --output")
    return dict(read_json(file))


class Lines:
    """A line when a run begins, and one when it ends."""

    def __init__(self, console: Console, output: Path) -> None:
        self.console, self.output = console, output
        self.start = time.perf_counter()

    def __call__(self, run: Run, index: int, count: int, what: str, entry: dict[str, Any]) -> None:
        name = f"{index + 1}/{count}  {run.label} on {run.train_task}, seed {run.seed}"
        if what == "start":
            self.start = time.perf_counter()
            say(self.console, f"{name} … ({self.output / 'runs' / run.key / 'log.txt'})")
            return
        took = "" if what == "kept" else f" ({time.perf_counter() - self.start:.0f} s)"
        said = {"kept": "kept from before", "done": "done", "failed": "failed"}[what]
        more = entry["error"] if what == "failed" else scores_of(entry)
        say(self.console, f"{name}: {said}{took}{more and f': {more}'}", style="red" if what == "failed" else "")


def scores_of(entry: dict[str, Any]) -> str:
    """One beside the other, in percent; what needs a judge has none."""
    scores = {name: found["score"] for name, found in entry["scores"].items() if found["score"] is not None}
    return ", ".join(f"{name} {100 * score:.1f}" for name, score in scores.items())
