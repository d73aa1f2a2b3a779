"""`reftune memorise`: how much one rank-1 edit of each layer can hold."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from ..errors import ReftuneError
from ..evaluation.data import task_rows
from ..evaluation.tasks.memorisation import MEMORISATION
from ..files import check_writable
from .output import JsonFlag, bar, consoles, emit, quiet_libraries, say

if TYPE_CHECKING:
    from ..analysis.memorise import Cell

__all__ = ["memorise"]

EXAMPLE = """Find out how much one rank-1 edit of one layer can hold.

Examples:

    reftune memorise --model smollm2 --layers 7,15 --lengths 16,32
    --data-dir data --output memorised

    reftune memorise --text random --lengths 16 --codebook 16,64
    --output memorised

An edit of d + 1 parameters at the last prompt token is trained until greedy
generation gives back the first tokens of Alice in Wonderland, of its words in
a random order (scrambled), or random tokens; or, after many prompts, the
token of each (codebook).

Every cell of layer and length is kept by its settings: started again, or with
more layers, lengths or texts, the command does only what is missing.
"""

LENGTHS = "16,32,64,128"
# As the paper chose them: 0, 5, 10, …, 31 of 32.
LAYERS = 7


def memorise(
    output: Annotated[Path, typer.Option(help="Folder for cells, adapters, results and pictures.")],
    model: Annotated[str, typer.Option(help="Folder or Hub name of the base model, or smollm2.")] = "smollm2",
    layers: Annotated[str | None, typer.Option(help="all, '2,7,15', -1, 0.5 …  [7 from first to last]")] = None,
    lengths: Annotated[str | None, typer.Option(help=f"Tokens, with commas.  [{LENGTHS}]")] = None,
    text: Annotated[str, typer.Option(help="alice, scrambled, random; several with commas.")] = "alice",
    codebook: Annotated[str | None, typer.Option(help="Entries, with commas; alone, without any text.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the data files; else REFTUNE_DATA.")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="At most; fewer where all is given back.")] = 1000,
    codebook_epochs: Annotated[int, typer.Option(min=1, help="The same of codebooks.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Of the edit, and of what is random in texts.")] = 42,
    until_lost: Annotated[
        bool, typer.Option("--until-lost", help="Nothing longer than what a layer did not hold.")
    ] = False,
    dtype: Annotated[str, typer.Option(help="Of the base model: auto, float32, bfloat16, float16.")] = "auto",
    as_json: JsonFlag = False,
) -> None:
    import torch

    from ..analysis.memorise import Cell, plan_cells, run_cells
    from ..analysis.memorise_report import results_of, write_memorised
    from ..models import load_base
    from ..reporting import check_report

    kinds = _kinds(text)
    sizes = _sizes("--lengths", lengths or LENGTHS) if lengths or codebook is None else []
    entries = _sizes("--codebook", codebook) if codebook is not None else []
    results, progress = consoles(as_json)
    quiet_libraries()
    check_report()
    check_writable(output)
    needs_book = bool(sizes) and set(kinds) != {"random"}
    book = str(task_rows(MEMORISATION, "train", data_dir=data_dir)[0]["text"]) if needs_book else None
    base, tokenizer = load_base(model, dtype=dtype)
    if torch.cuda.is_available():
        base.to("cuda")  # type: ignore[arg-type]
    chosen = _layers(base, layers)
    cells = [Cell(kind, layer, size, epochs=epochs, seed=seed) for kind in kinds for size in sizes for layer in chosen]
    cells += [Cell.codebook(layer, size, epochs=codebook_epochs, seed=seed) for size in entries for layer in chosen]
    plan = plan_cells(base, tokenizer, cells, book=book)
    with bar(progress, "epochs", sum(cell.epochs for cell in cells)) as done:
        watch = _Watch(progress, done)
        found = run_cells(
            base,
            tokenizer,
            plan,
            model=model,
            output=output,
            command=shlex.join(["reftune", *sys.argv[1:]]),
            until_lost=until_lost,
            on_cell=watch.on_cell,
            on_epoch=watch.on_epoch,
        )
    summary = results_of(output, found)
    paths = write_memorised(summary, output)
    if as_json:
        emit({"output": str(output), "files": [str(path) for path in paths], "cells": found})
        return
    results.print(_table(found))
    say(results, f"Report: {paths[1]}")


memorise.__doc__ = EXAMPLE


class _Watch:
    """Epochs done as the bar shows them, and a line for each cell."""

    def __init__(self, console: Any, done: Any) -> None:
        self.console = console
        self.done = done
        self.before = 0

    def on_epoch(self, cell: Cell, epoch: int) -> None:
        self.done(self.before + epoch)

    def on_cell(self, line: dict[str, Any]) -> None:
        from ..analysis.memorise_report import TITLES

        self.before += line["epochs"]
        self.done(self.before)
        say(
            self.console,
            f"{TITLES[line['kind']]}, layer {line['layer']}: {line['held']} of {line['size']} held "
            f"({line['epochs_run']} epochs, {line['seconds']:.0f} s)",
        )


def _table(lines: list[dict[str, Any]]) -> Table:
    table = Table(box=None)
    for name in ("what", "layer", "size", "held", "recall", "epochs"):
        table.add_column(name, justify="left" if name == "what" else "right")
    for line in lines:
        shown = [line["layer"], line["size"], line["held"], f"{line['recall']:.2f}", line["epochs_run"]]
        table.add_row(line["kind"], *map(str, shown))
    return table


def _layers(base: Any, layers: str | None) -> list[int]:
    from ..config import resolve_layers
    from ..tuner import find_stacks

    count = len(find_stacks(base)[0].blocks)
    if layers is None:
        spread = min(LAYERS, count)
        return sorted({round(i * (count - 1) / max(1, spread - 1)) for i in range(spread)})
    return resolve_layers(layers, count)


def _kinds(text: str) -> list[str]:
    from ..analysis.memorise import CODEBOOK, TEXTS

    found = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in found if name not in TEXTS]
    if unknown or not found:
        hint = "; --codebook asks for codebooks" if CODEBOOK in unknown else ""
        raise ReftuneError(f"--text {text!r} is not valid; use {', '.join(TEXTS)}{hint}")
    return found


def _sizes(option: str, text: str) -> list[int]:
    try:
        found = sorted({int(part) for part in text.split(",")})
    except ValueError:
        found = []
    if not found or found[0] < 1:
        raise ReftuneError(f"{option} {text!r} is not valid; use whole numbers from 1, such as 16,32,64")
    return found
