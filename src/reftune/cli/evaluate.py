"""`reftune eval`: scores of an adapter, or of a base model, on benchmark tasks and on files of one's own."""

from __future__ import annotations

import os
import shlex
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from ..data import PromptStyle
from ..errors import ReftuneError
from ..evaluation.data import DATA_VARIABLE, task_rows
from ..evaluation.judge import write_alpaca_eval
from ..evaluation.own import FORMS, tasks_of
from ..evaluation.tasks import GROUPS, TASKS
from ..evaluation.tasks.base import Given, Task
from ..files import check_writable, read_json, write_json
from .generate import StrengthOption, turn
from .output import JsonFlag, bar, command, consoles, emit, quiet_libraries, say

if TYPE_CHECKING:
    from ..evaluation.runner import TaskResult

__all__ = ["ANSWER_HELP", "SCORE_HELP", "SPLIT_HELP", "evaluate", "interval_of", "print_details", "tell"]

SPLIT_HELP = "Of a file: the part of its rows to score, by the hash of their prompts."
SCORE_HELP = f"Of a file: {', '.join(FORMS)}; else as fits its answers."
ANSWER_HELP = "Of a file: the column of the right answer, in place of the response."

FREE_TEXT = ("rouge", "f1")
NAMES = "\n".join(textwrap.wrap(f"Tasks: {', '.join(TASKS)}.", 78, break_on_hyphens=False))
EXAMPLE = f"""Score an adapter, or a base model, on your own records or on benchmark tasks.

Examples:

    reftune eval my-adapter --tasks test.jsonl

    reftune eval my-adapter --tasks messages.csv --split 0.2 --score labels

    reftune eval my-adapter --tasks commonsense,gsm8k --data-dir data

    reftune eval my-adapter --tasks sst2 --limit 200 --json

    reftune eval smollm2 --tasks boolq

A file has records as training takes them. How they are scored is guessed
from their answers and told; --score says otherwise:
{", ".join(FORMS[:-1])} or {FORMS[-1]}.

{NAMES}

Groups: {", ".join(GROUPS)}.

Every answer is a JSON line in the output folder; started again with the same
settings, the command goes on where it stopped.
"""


def evaluate(
    adapter: Annotated[str, typer.Argument(help="Folder or Hub name of the adapter, or of a base model.")],
    tasks: Annotated[str, typer.Option(help="Files of records, tasks and groups, with commas.")],
    split: Annotated[float | None, typer.Option(help=SPLIT_HELP)] = None,
    score: Annotated[str | None, typer.Option(help=SCORE_HELP)] = None,
    answer: Annotated[str | None, typer.Option(help=ANSWER_HELP)] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of the data files; else REFTUNE_DATA, else the Hub.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="So many rows of each task, drawn once for all.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for answers and scores.  [ADAPTER-eval]")] = None,
    base: Annotated[str | None, typer.Option(help="Base model, in place of the one the adapter names.")] = None,
    engine: Annotated[str, typer.Option(help="What answers: auto, vllm, transformers.")] = "auto",
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Prompts at once, on transformers.  [what memory holds]")
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="In place of the tasks' own.")] = None,
    strength: StrengthOption = None,
    dtype: Annotated[str, typer.Option(help="Of the base model: auto, float32, bfloat16, float16.")] = "float32",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start anew.")] = False,
    as_json: JsonFlag = False,
) -> None:
    from ..adapter_files import is_adapter
    from ..comparison.classify import classify_rows
    from ..evaluation.engines import close_engine
    from ..evaluation.runner import evaluate_rows
    from ..models import check_model, fingerprint, refuse_encoder

    chosen = tasks_of(tasks, split=split, score=score, answer=answer)
    results, progress = consoles(as_json)
    quiet_libraries()
    tell(progress, chosen)
    tell_styles(progress, adapter, chosen)
    folder = output or Path(f"{name_of(adapter)}-eval")
    check_writable(folder)
    # data first: it is what is most often missing, and a model takes longer to load
    rows = {task.name: task_rows(task, "test", data_dir=data_dir, limit=limit) for task in chosen}
    generation = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
    settings = {"adapter": adapter, "base": base, "dtype": dtype, "generation": generation}
    settings["strength"] = strength
    settings |= {"files": fingerprint(adapter), "base_files": fingerprint(base)}
    if not overwrite:
        check_folder(folder, settings)
    if not is_adapter(adapter):
        refuse_encoder(adapter, check_model(adapter))
    labels = head_of(adapter, chosen)
    arguments = [{**task.generation, **generation} for task in chosen]
    model, tokenizer, note = loaded(
        adapter, base, dtype, labels, engine=engine, generation=arguments, strength=strength
    )
    if note is not None:
        say(progress, note)
    earlier = clear(folder) if overwrite else summary_of(folder)
    write_json(folder / "settings.json", settings)
    found: list[TaskResult] = []
    for task in chosen:
        how: dict[str, Any] = {"file": folder / f"{task.name}.jsonl"}
        with bar(progress, task.title, len(rows[task.name])) as done:
            if labels is None:
                how |= {"progress": done, "batch_size": batch_size, **generation}
                result = evaluate_rows(model, tokenizer, task, rows[task.name], **how)
            else:
                result = classify_rows(model, tokenizer, task, rows[task.name], batch_size=batch_size or 16, **how)
        found.append(result)
        if task.metric is None:
            write_alpaca_eval(result.examples, folder / f"{task.name}.json", generator=name_of(adapter))
        write_json(folder / "summary.json", earlier | {r.task: r.summary() for r in found})
    close_engine(model)
    if as_json:
        emit({"adapter": adapter, "output": str(folder), "scores": {r.task: r.summary() for r in found}})
        return
    print_scores(results, chosen, found)
    print_details(results, found)
    for task, result in zip(chosen, found, strict=True):
        if task.score_form in FREE_TEXT:
            say(results, judge_own(result, folder))
        if result.score is None:
            outputs = shlex.quote(str(folder / f"{result.task}.json"))
            files = Path(data_dir or os.environ.get(DATA_VARIABLE, "DATA"))
            source: Any = task.sources["test"]
            reference = shlex.quote(str(files / source.file))
            line = f"judge {outputs} --reference {reference} --endpoint URL --model NAME"
            say(results, f"{result.task} needs a judge:  {command()} {line}")
    say(results, f"Answers: {folder}")


evaluate.__doc__ = EXAMPLE


def loaded(
    adapter: str,
    base: str | None,
    dtype: str,
    labels: int | None,
    *,
    engine: str,
    generation: Sequence[dict[str, Any]],
    strength: float | None = None,
) -> tuple[Any, Any, str | None]:
    """What answers, its tokenizer, and why that is not vLLM, where vLLM is there and cannot."""
    from ..adapter_files import adapter_config, is_adapter
    from ..evaluation.engines import choose_engine, vllm_engine
    from ..models import load_adapter, load_base

    has_adapter = is_adapter(adapter)
    name = (base or adapter_config(adapter).base_model_name_or_path) if has_adapter else adapter
    note = None
    if labels is None and name:
        chosen, note = choose_engine(engine, name, adapter if has_adapter else None, generation)
        if chosen == "vllm":
            found = vllm_engine(name, adapter if has_adapter else None, dtype=dtype)
            turn(found, strength, adapter=adapter)
            return found, found.tokenizer, note
    elif engine == "vllm":
        raise ReftuneError(f"{adapter!r} is a classifier, which vLLM does not run here; use --engine transformers")
    if has_adapter:
        model, tokenizer = load_adapter(adapter, base=base, dtype=dtype, labels=labels)
    else:
        model, tokenizer = load_base(adapter, dtype=dtype)
    turn(model, strength, adapter=adapter)
    return model, tokenizer, note


def tell(console: Console, tasks: Sequence[Task]) -> None:
    """What is to be known of files of one's own before they are scored."""
    for note in dict.fromkeys(note for task in tasks for note in task.notes):
        say(console, note)


def tell_styles(console: Console, adapter: str, tasks: Sequence[Task]) -> None:
    """Where a file's prompts are written otherwise than those that the adapter was trained on."""
    style = PromptStyle.read(adapter) if Path(adapter).is_dir() else None
    if style is None:
        return
    for task in tasks:
        source = task.sources["test"]
        found = PromptStyle.of_records(row["asked"] for row in source.rows) if isinstance(source, Given) else style
        if found != style:
            other = "several" if found is None else described(found)
            say(
                console,
                f"{task.title}: prompts are written as {other}, but the adapter was trained on {described(style)}: it "
                "can do worse than it is able to.",
            )


def described(style: PromptStyle) -> str:
    system = "" if style.system is None else f" with the system turn {style.system[:60]!r}"
    return f"“{style.style}”{system}"


def judge_own(result: TaskResult, folder: Path) -> str:
    """How a judge compares free answers with the right ones; the two files that it reads are written."""
    files = []
    for name, key in (("", "output"), (".reference", "reference")):
        rows = [{"instruction": e["prompt"], "output": e[key]} for e in result.examples]
        # a judge pairs answers by their prompts
        once = list({row["instruction"]: row for row in rows}.values())
        files.append(folder / f"{result.task}{name}.json")
        write_alpaca_eval(once, files[-1], generator="reference" if name else result.task)
    outputs, reference = (shlex.quote(str(file)) for file in files)
    return (
        f"Words that agree are not yet a good answer; a judge can tell:  {command()} judge {outputs} --reference "
        f"{reference} --endpoint URL --model NAME"
    )


def head_of(adapter: str, tasks: list[Task]) -> int | None:
    """How many outputs the head of a classifier's adapter has, by the tasks; None for adapters of language models.

    Raises:
        ReftuneError: it cannot be asked these tasks.
    """
    from ..adapter_files import adapter_config, is_adapter

    if not is_adapter(adapter) or adapter_config(adapter).task_type != "SEQ_CLS":
        return None
    heads = {task.name: len(task.classes.names) or 1 for task in tasks if task.classes is not None}
    wrong = [task.name for task in tasks if task.name not in heads]
    if wrong or len(set(heads.values())) > 1:
        what = f"{', '.join(wrong)} is no classification" if wrong else f"these tasks have {heads} classes"
        raise ReftuneError(f"{adapter!r} is the adapter of a classifier with one head, and {what}; ask its own task")
    return next(iter(heads.values()))


def check_folder(folder: Path, settings: dict[str, Any]) -> None:
    """Make sure that what the folder holds was found with the same settings.

    Raises:
        ReftuneError: it was not.
    """
    mark = folder / "settings.json"
    if not mark.is_file():
        return
    before = read_json(mark)
    # a folder may be called by several names: there it is its files that count
    parts = {"files": "adapter", "base_files": "base"}
    names = [name for name in settings if name not in [part for files, part in parts.items() if settings[files]]]
    other = dict.fromkeys(parts.get(name, name) for name in names if before.get(name) != settings[name])
    if other:
        told = ", ".join(
            f"what was in {settings[name]!r} before"
            if before.get(name) == settings[name]
            else f"{name} {before.get(name)!r} and not {settings[name]!r}"
            for name in other
        )
        raise ReftuneError(
            f"{str(folder)!r} holds answers of {told}; use another --output, or --overwrite to start anew"
        )


def clear(folder: Path) -> dict[str, Any]:
    """Take the answers of an earlier run away; what is left of its scores: nothing."""
    for file in [*folder.glob("*.jsonl"), folder / "summary.json"]:
        file.unlink(missing_ok=True)
    return {}


def summary_of(folder: Path) -> dict[str, Any]:
    """Scores of earlier runs with the same settings, by task."""
    file = folder / "summary.json"
    return dict(read_json(file)) if file.is_file() else {}


def name_of(adapter: str) -> str:
    """For the output: that of the folder, of a comparison's run the run's."""
    path = Path(adapter)
    return path.parent.name if path.name == "adapter" and path.parent.parent.name == "runs" else path.name


MOST_COLUMNS = 10


def print_details(console: Console, found: Sequence[TaskResult]) -> None:
    """What a file of one's own tells beside its score: exact answers; precision, recall and confusion of labels."""
    for result in found:
        told = {name: value for name, value in result.details.items() if isinstance(value, float)}
        if told:
            console.print()
            say(console, f"{result.task}: " + ", ".join(f"{shown(name)} {100 * told[name]:.1f}" for name in told))
        if "labels" not in result.details:
            continue
        table = Table(
            "label", *(Column(name, justify="right") for name in ("rows", "precision", "recall", "F1")), box=None
        )
        for one in result.details["labels"]:
            numbers = (f"{100 * one[name]:.1f}" for name in ("precision", "recall", "f1"))
            table.add_row(Text(one["label"]), f"{one['rows']:,}", *numbers)
        console.print(table)
        columns, rows = (result.details["confusion"][name] for name in ("columns", "rows"))
        if len(columns) > MOST_COLUMNS:
            continue
        console.print()
        heads = [Column(Text(name), justify="right", overflow="fold") for name in columns]
        table = Table(Column("is \\ taken for"), *heads, box=None)
        for name, counts in zip(columns, rows, strict=False):
            table.add_row(Text(name), *(str(count) if count else "·" for count in counts))
        console.print(table)


def interval_of(result: TaskResult) -> str:
    """Of 95 %, in points."""
    low, high = result.low, result.high
    return "–" if low is None or high is None else f"{100 * low:.1f} to {100 * high:.1f}"


def shown(name: str) -> str:
    return {"macro_f1": "macro F1", "exact": "exact answers"}.get(name, name)


def print_scores(console: Console, tasks: list[Task], found: list[TaskResult]) -> None:
    """A table, and the mean of what is scored alike."""
    table = Table("task", "rows", "score", "95 % interval", "no answer", "guessing", "metric", box=None)
    for task, result in zip(tasks, found, strict=True):
        score = "–" if result.score is None else f"{100 * result.score:.1f}"
        interval = interval_of(result)
        chance = "–" if task.chance is None else f"{100 * task.chance:.1f}"
        table.add_row(task.title, f"{result.n:,}", score, interval, f"{result.unreadable:,}", chance, result.metric)
    scored = [result.score for result in found if result.score is not None]
    if len(scored) > 1:
        table.add_row("mean", "", f"{100 * sum(scored) / len(scored):.1f}")
    console.print(table)
    tell_unreadable(console, found)


def tell_unreadable(console: Console, found: Sequence[TaskResult]) -> None:
    """What the column "no answer" counts, where it counts something."""
    if any(result.unreadable for result in found):
        say(
            console,
            "no answer: what was written holds none of the answers that the task allows; it counts as wrong. A model "
            "that was not trained on the task was not told which there are.",
        )
