"""`reftune search`: which adapter fits a task, found on its training rows."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ..errors import ReftuneError
from ..evaluation.own import tasks_of
from ..files import check_writable, read_json
from ..reporting.numbers import count as whole_number
from ..reporting.numbers import points
from .evaluate import ANSWER_HELP, SCORE_HELP, tell
from .output import JsonFlag, command, consoles, emit, our_errors_only, quiet_libraries, say
from .train import read_yaml

if TYPE_CHECKING:
    from ..search.settings import SearchConfig

__all__ = ["search"]

EXAMPLE = """Find layers, positions, rank and learning rate for a task.

Examples:

    reftune search --model smollm2 --task train.jsonl --budget 30m

    reftune search --model smollm2 --task sst2 --train-rows 1000
    --budget "40 trials" --data-dir data --output search-sst2

    reftune search search.yaml

Trials are trained on rows to train on and chosen by others of them that are
held back; test rows are never looked at. The best are trained again with
several seeds and scored on further rows that chose nothing.

Everything is kept in the output folder: started again, the command goes on;
started in several processes or machines with the same folder, they share the
search.
"""


def search(
    config: Annotated[Path | None, typer.Argument(help="YAML file.", metavar="SEARCH.yaml")] = None,
    model: Annotated[str | None, typer.Option(help="Folder or Hub name of the base model, or smollm2.")] = None,
    task: Annotated[str | None, typer.Option(help="File of records to train on, or the name of a task.")] = None,
    budget: Annotated[str | None, typer.Option(help="40 trials, 30m, 2h: of all processes together.")] = None,
    train: Annotated[Path | None, typer.Option(help="Records to train on, where the task is what is scored.")] = None,
    split: Annotated[float | None, typer.Option(help="The part of the file that is scored later; left out.")] = None,
    score: Annotated[str | None, typer.Option(help=SCORE_HELP)] = None,
    answer: Annotated[str | None, typer.Option(help=ANSWER_HELP)] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes of a trial that is not stopped.")] = None,
    train_rows: Annotated[int | None, typer.Option(min=1, help="So many rows to train on; else all.")] = None,
    held_out: Annotated[int | None, typer.Option(min=1, help="Rows that choose, and that tell of the best.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Rows a step.")] = None,
    finalists: Annotated[int | None, typer.Option(min=0, help="So many of the best are trained again.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Of the finalists, with commas.")] = None,
    gates: Annotated[bool, typer.Option("--gates", help="First one training that says which layers to try.")] = False,
    sampler: Annotated[str | None, typer.Option(help="tpe or random.")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of the data files; else REFTUNE_DATA, else the Hub.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for the study, results and report.")] = Path("search"),
    report_only: Annotated[bool, typer.Option("--report-only", help="Of what was found.")] = False,
    as_json: JsonFlag = False,
) -> None:
    from ..reporting import check_report
    from ..search.report import write_report
    from ..search.search import search as do_search
    from ..search.study import check_optuna
    from ..search.summary import RESULTS

    check_optuna()
    check_report()
    results, progress = consoles(as_json)
    quiet_libraries()
    if report_only:
        if not (output / RESULTS).is_file():
            raise ReftuneError(f"{str(output)!r} holds no {RESULTS}: name the search's folder by --output")
        found = dict(read_json(output / RESULTS))
    else:
        given = {
            "model": model,
            "task": task,
            "budget": budget,
            "epochs": epochs,
            "train_rows": train_rows,
            "held_out": held_out,
            "batch_size": batch_size,
            "finalists": finalists,
            "gates": gates or None,
            "sampler": sampler,
            "seeds": None if seeds is None else _numbers(seeds),
        }
        own = {"train": None if train is None else str(train), "split": split, "score": score, "answer": answer}
        settings = _settings(config, given, own)
        check_writable(output)
        tell(progress, [settings.parsed_task()])
        line = shlex.join(["reftune", *sys.argv[1:]])
        folder = None if data_dir is None else str(data_dir)
        # without the line of each trial that says whether it replays what it shares
        with our_errors_only():
            found = do_search(settings, output, data_dir=folder, command=line, say=Lines(progress, settings))
    pages = write_report(found, output)
    if as_json:
        emit({"output": str(output), "report": [str(page) for page in pages], **_brief(found)})
        return
    _print(results, found, output)
    say(results, f"Report: {pages[-1]}")


search.__doc__ = EXAMPLE


def _settings(config: Path | None, given: dict[str, Any], own: dict[str, Any]) -> SearchConfig:
    from ..search.settings import SearchConfig

    values = read_yaml(config) if config is not None else {}
    values.update({key: value for key, value in given.items() if value is not None})
    missing = [f"--{name}" for name in ("model", "task") if values.get(name) is None]
    if missing:
        raise typer.BadParameter(f"give {' and '.join(missing)}, or a file that does")
    if any(value is not None for value in own.values()):
        (values["task"],) = [found.called for found in tasks_of(values["task"], **own)]
    return SearchConfig.from_mapping(values)


def _numbers(text: str) -> list[int]:
    from .compare import numbers

    return numbers(text)


class Lines:
    """A line when a trial ends."""

    def __init__(self, console: Console, settings: SearchConfig) -> None:
        from ..search.budget import Budget

        self.console = console
        say(console, f"Budget: {Budget.of(settings.budget)}; each trial {settings.epochs:g} epochs or less")

    def __call__(self, what: str, entry: dict[str, Any]) -> None:
        if what in ("begun", "gating"):
            return
        if what == "gated":
            say(self.console, f"gates: layers {entry['layers']} are worth trying")
            return
        name = f"trial {entry['number']}" + (f" again, seed {entry['seed']}" if "seed" in entry else "")
        took = f" ({entry['seconds']:.0f} s)" if "seconds" in entry else ""
        if what == "failed":
            say(self.console, f"{name}: failed: {entry['error']}", style="red")
            return
        found = "stopped early" if what == "stopped" else points(entry["score"])
        size = f", {whole_number(entry['parameters'])} parameters" if "parameters" in entry else ""
        say(self.console, f"{name}: {found}{size}{took}  {shown(entry['chosen'])}")


def shown(chosen: dict[str, Any]) -> str:
    """A trial's choices on one line."""
    tie = f", tie {chosen['tie']}" if chosen.get("tie", "all") != "all" else ""
    return (
        f"{chosen['intervention']} r {chosen['r']}, layers {chosen['layers']}, {chosen['positions']}{tie}, "
        f"lr {chosen['learning_rate']:.1e}"
    )


def _print(console: Console, found: dict[str, Any], output: Path) -> None:
    from ..search.picks import command_for

    by_number = {entry["number"]: entry for entry in found["trials"]}
    table = Table("trial", "score", "95 % interval", "parameters", "choices", box=None, title="The best, trained again")
    for one in found["finals"]:
        interval = f"{points(one['low'])} to {points(one['high'])}"
        chosen = shown(by_number[one["number"]]["chosen"])
        table.add_row(str(one["number"]), points(one["score"]), interval, whole_number(one["parameters"]), chosen)
    if found["finals"]:
        console.print(table)
    elif any(entry["state"] == "running" for entry in found["trials"]):
        say(console, "Another process is still at a trial: it trains the best again when it is done.")
    if any(entry["score"] is not None for entry in found["trials"]):
        say(console, f"Train it:  {command()} {command_for(output, 'best')}")


def _brief(found: dict[str, Any]) -> dict[str, Any]:
    return {name: found[name] for name in ("rows", "scored", "seconds", "trials", "front", "importance", "finals")}
