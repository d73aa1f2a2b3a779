"""`reftune compose`: two abilities in one adapter, switched on apart and together."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from ..files import check_writable
from .generate import read_prompts
from .output import JsonFlag, bar, command, consoles, emit, quiet_libraries, say

if TYPE_CHECKING:
    from ..analysis.compose import Ability, Composed

__all__ = ["compose"]

EXAMPLE = """Teach one adapter two abilities and switch them on together.

One LoReFT is cut in two parts of its rank (appendix G.1 of the ReFT paper).
Each part is trained on its own data, in one run; then the same prompts are
answered with none, either and both, and scored by a rule for each ability.

Examples:

    reftune compose --model smollm2 --first shouting.jsonl
    --second brief.jsonl --output both

    reftune compose --first german --second instructions --data-dir data
    --positions l1 --layers 15 --output german

Data are files of records, Hub names, or sets made of the data folder: german,
instructions, capitals, short. Rules: language:de, capitals, emoji, words:1-3,
instruction; without --first-rule and --second-rule they are guessed from the
answers of the data, which is told. The prompts are rows of the second data
that are held back, or those of --prompts.
"""


def compose(
    first: Annotated[str, typer.Option(help="Data of the first part.")],
    second: Annotated[str, typer.Option(help="Data of the second part.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of adapter, table and answers.")],
    model: Annotated[str, typer.Option(help="Folder or Hub name of the base model, or smollm2.")] = "smollm2",
    first_rule: Annotated[str | None, typer.Option(help="How answers are scored for the first.  [guessed]")] = None,
    second_rule: Annotated[str | None, typer.Option(help="The same for the second.  [guessed]")] = None,
    prompts: Annotated[Path | None, typer.Option(help="Prompts to ask.  [rows held back of the second]")] = None,
    test: Annotated[int, typer.Option(min=1, help="So many prompts.")] = 40,
    rows: Annotated[int | None, typer.Option(min=1, help="At most so many rows of each data.  [all]")] = None,
    longest: Annotated[int | None, typer.Option(min=1, help="Leave out rows with answers of more words.")] = None,
    rank: Annotated[int, typer.Option(min=2, help="Rank r; each part has half of it.")] = 8,
    layers: Annotated[str, typer.Option(help="all, '3;9;18;24', -1, 0.5 …")] = "all",
    positions: Annotated[str, typer.Option(help="f7+l7, l1, prompt, all …")] = "l1",
    learning_rate: Annotated[float, typer.Option("--lr", help="Peak learning rate.")] = 5e-3,
    epochs: Annotated[float, typer.Option(help="Passes over the data.")] = 3,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows a step.")] = 8,
    max_length: Annotated[int, typer.Option(help="Tokens a row; longer prompts are cut from the left.")] = 512,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 64,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the data files; else REFTUNE_DATA.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 42,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the output.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start anew in an output that holds a run.")] = False,
    as_json: JsonFlag = False,
) -> None:
    from ..analysis.compose import ability, answer_cases, check_two, hold_back, results_of, train_parts, write_composed
    from ..data import PromptStyle
    from ..evaluation.data import sample
    from .progress import TrainingProgress

    results, progress = consoles(as_json)
    quiet_libraries()
    check_writable(output)
    # the prompts that are held back are not of the rows to train on
    limits = (rows, rows if rows is None or prompts is not None else rows + test)
    abilities = [
        ability(source, rule_name=scored, data_dir=data_dir, limit=limit, longest=longest, seed=seed)
        for source, scored, limit in zip((first, second), (first_rule, second_rule), limits, strict=True)
    ]
    one, other = abilities
    if one.name == other.name:
        for number, own in enumerate(abilities, start=1):
            own.name = f"{own.name} {number}"
    if prompts is None:
        hold_back(other, test, seed=seed)
        asked: list[Any] = [row.asked for row in other.held]
    else:
        style = PromptStyle.of_records([row.record for row in other.rows]) or PromptStyle("prompt")
        asked = [style.record(p) if isinstance(p, str) else p for p in sample(read_prompts(prompts), test, seed=seed)]
    check_two(one, other, rank)
    _say_rules(progress, abilities)
    steps = {"learning_rate": learning_rate, "num_train_epochs": epochs, "per_device_train_batch_size": batch_size}
    with TrainingProgress(progress) as callback:
        run = train_parts(
            one,
            other,
            model=model,
            output=output,
            reft={"r": rank, "layers": layers, "positions": positions},
            training=steps,
            max_length=max_length,
            seed=seed,
            resume=resume,
            overwrite=overwrite,
            callbacks=[callback],
            on_fill=callback.on_fill,
        )
    with bar(progress, "answers", 4 * len(asked)) as done:
        found = answer_cases(run, one, other, asked, max_new_tokens=max_new_tokens, progress=done)
    called = shlex.join(["reftune", *sys.argv[1:]])
    page = write_composed(found, output, command=called)
    if as_json:
        emit(results_of(found, command=called))
        return
    _print(results, found, page)


compose.__doc__ = EXAMPLE


def _say_rules(console: Any, abilities: list[Ability]) -> None:
    for own in abilities:
        guessed = " (guessed from its answers)" if own.guessed else ""
        say(console, f"{own.name}: {len(own.rows):,} rows, scored by {own.rule.name}{guessed}: {own.rule.says}")


def _print(console: Any, found: Composed, page: Path) -> None:
    from ..analysis.compose import results_of, told
    from ..analysis.compose.report import examples

    table = Table("switched on", found.first.name, found.second.name, "both at once", box=None)
    for case in results_of(found)["cases"]:
        means = [case[name] for name in ("first", "second", "both")]
        table.add_row(case["case"], *(f"{100 * m:.0f} ({100 * low:.0f} to {100 * high:.0f})" for m, low, high in means))
    console.print(table)
    say(console, told(found))
    shown = Table(title="three of the prompts", show_lines=True)
    for column in ("prompt", "none", "first", "second", "both"):
        shown.add_column(column, ratio=1, overflow="fold")
    for example in examples(found, 3):
        shown.add_row(*(Text(_short(example[name])) for name in ("prompt", "none", "first", "second", "both")))
    console.print(shown)
    say(console, f"Report: {page}")
    folder = shlex.quote(str(found.run.adapter_path))
    say(console, f'Try it:  {command()} generate {folder} --subspaces 0,1 --prompt "..."')


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 160 else f"{flat[:160]} …"
