"""`reftune train`: an adapter from a YAML file or from flags."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.table import Table
from rich.text import Text

from ..errors import ReftuneError
from .beside import held_back, print_beside, score_beside, scored_task
from .check import check_run, print_check
from .output import JsonFlag, command, consoles, emit, quiet_libraries, say
from .push import check_login, push_adapter

if TYPE_CHECKING:
    from ..training import RunResult

__all__ = ["result_dict", "train"]

EXAMPLE = """Train an adapter.

Examples:

    reftune train run.yaml

    reftune train --model smollm2 --data train.jsonl --output my-adapter

    reftune train --model smollm2 --data messages.csv --split 0.2
    --output my-adapter

    reftune train --model smollm2 --data train.csv --eval-data test.csv --best
    --output my-adapter

    reftune train run.yaml --check

    reftune train run.yaml --rank 8 --lr 2e-3 --output another-adapter

    reftune train --from-search search --pick smallest --output small-adapter

The file has the keys model, data, output, eval_data, split, max_length, seed,
dtype, train_on, reuse, reuse_limit_gb, packing, lr_groups, best, reft (fields
of ReftConfig) and training (fields of transformers' TrainingArguments). Flags
win over the file. With evaluation data, or a part of the data held back as
such (split), the adapter is scored beside the base model.
"""


def train(
    config: Annotated[Path | None, typer.Argument(help="YAML file.", metavar="CONFIG.yaml")] = None,
    model: Annotated[str | None, typer.Option(help="Folder or Hub name of the base model, or smollm2.")] = None,
    data: Annotated[str | None, typer.Option(help="JSON, JSONL, CSV or Parquet (plain or .gz), or a Hub name.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for the adapter.")] = None,
    from_search: Annotated[Path | None, typer.Option(help="Folder of a search: train one of its trials.")] = None,
    pick: Annotated[str, typer.Option(help="Of the search: best, smallest, or a trial's number.")] = "best",
    eval_data: Annotated[str | None, typer.Option(help="Records to score adapter and base model on.")] = None,
    split: Annotated[float | None, typer.Option(help="Hold this part of the data back as evaluation data.")] = None,
    eval_rows: Annotated[int, typer.Option(min=0, help="So many of them are answered at the end; 0: none.")] = 200,
    best: Annotated[bool | None, typer.Option("--best", help="Keep the epoch with the lowest loss on them.")] = None,
    rank: Annotated[int | None, typer.Option(help="Rank r of the edit.")] = None,
    layers: Annotated[str | None, typer.Option(help="all, '3;9;18;24', -1, 0.5 …")] = None,
    positions: Annotated[str | None, typer.Option(help="f7+l7, l1, prompt, all …")] = None,
    intervention: Annotated[str | None, typer.Option(help="loreft, direft, noreft …")] = None,
    learning_rate: Annotated[float | None, typer.Option("--lr", help="Peak learning rate.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the data.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Rows a step, per device.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens a row; longer prompts are cut from the left.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random.")] = None,
    train_on: Annotated[str | None, typer.Option(help="Of conversations: the last answer, or all.")] = None,
    packing: Annotated[bool | None, typer.Option("--packing", help="No padding: rows end to end.")] = None,
    reuse: Annotated[str | None, typer.Option(help="auto or off: replay what training cannot change.")] = None,
    push: Annotated[str | None, typer.Option(help="Then put it on the Hub, as USER/NAME.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Show three rows and what it would cost; train nothing.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the output.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start anew in an output that holds a run.")] = False,
    as_json: JsonFlag = False,
) -> None:
    values = _values(config, from_search, pick)
    top = {"model": model, "data": data, "eval_data": eval_data, "max_length": max_length, "seed": seed}
    top |= {"packing": packing, "reuse": reuse, "best": best, "train_on": train_on}
    top["output"] = None if output is None else str(output)
    values.update({key: value for key, value in top.items() if value is not None})
    missing = [name for name in ("model", "data", "output") if values.get(name) is None]
    if missing and config is None and from_search is None:
        raise typer.BadParameter(f"give CONFIG.yaml, or also the flags {', '.join(f'--{name}' for name in missing)}")
    from ..training import RunConfig, end_processes, train_run
    from .progress import TrainingProgress

    reft = {"r": rank, "layers": layers, "positions": positions, "intervention": intervention}
    _merge(values, "reft", reft)
    _merge(
        values,
        "training",
        {
            "learning_rate": learning_rate,
            "num_train_epochs": epochs,
            "per_device_train_batch_size": batch_size,
        },
    )
    if push is not None and not check:
        # now, and not when an hour of training is over
        check_login(push)
    entry = held_back(values, split)
    run = RunConfig.from_mapping(values)
    results, progress = consoles(as_json)
    quiet_libraries()
    if check:
        found = check_run(run)
        if as_json:
            emit(found)
        else:
            print_check(results, found)
        return
    task = scored_task(progress, run, entry) if eval_rows and run.eval_data is not None else None
    with TrainingProgress(progress) as callback:
        result = train_run(run, resume=resume, overwrite=overwrite, callbacks=[callback], on_fill=callback.on_fill)
    end_processes()
    beside = None if task is None else score_beside(progress, result, task, rows=eval_rows, run=run)
    if not math.isfinite(result.final_loss):
        say(progress, "the loss is not a number: training diverged; try a lower learning rate", style="red")
    pushed = {} if push is None else {"url": push_adapter(result.adapter_path, push)}
    if as_json:
        emit({**result_dict(result), **({} if beside is None else beside.values()), **pushed})
        return
    table = Table(show_header=False, box=None)
    for key, value in {**result_dict(result), **pushed}.items():
        shown = f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)
        table.add_row(key.replace("_", " "), Text(shown))
    results.print(table)
    if beside is not None:
        print_beside(results, beside, result, task)
    results.print()
    say(results, f"Try it:  {command()} chat {shlex.quote(str(result.adapter_path))}")


train.__doc__ = EXAMPLE


def result_dict(result: RunResult) -> dict[str, Any]:
    """What --json of training commands has in common."""
    found: dict[str, Any] = {
        "final_loss": round(result.final_loss, 6),
        "seconds": round(result.seconds, 1),
        "steps": result.steps,
        "trainable_parameters": result.trainable_parameters,
        "trainable_percent": round(result.trainable_percent, 4),
        "adapter_path": str(result.adapter_path),
        "adapter_bytes": result.adapter_bytes,
    }
    if result.eval_loss is not None:
        found["eval_loss"] = round(result.eval_loss, 6)
    if result.best_epoch is not None:
        found["best_epoch"] = round(result.best_epoch, 3)
    return found


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ReftuneError: no such file, or not a mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ReftuneError(f"{str(path)!r} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ReftuneError(f"{str(path)!r} is not UTF-8 text") from error
    except yaml.YAMLError as error:
        raise ReftuneError(f"{str(path)!r} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ReftuneError(f"{str(path)!r} must hold keys and values, such as 'model: smollm2'")
    return values


def _values(config: Path | None, search: Path | None, pick: str) -> dict[str, Any]:
    """What the file says, or a trial of a search."""
    if search is None:
        return read_yaml(config) if config is not None else {}
    if config is not None:
        raise typer.BadParameter("give CONFIG.yaml or --from-search, not both; flags change single values of either")
    from ..search.picks import run_values

    return run_values(search, pick)


def _merge(values: dict[str, Any], section: str, flags: dict[str, Any]) -> None:
    from ..training.run import keys_and_values

    given = {key: value for key, value in flags.items() if value is not None}
    if given:
        values[section] = {**keys_and_values(section, values.get(section) or {}), **given}
