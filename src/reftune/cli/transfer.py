"""`reftune transfer`: an adapter of one model becomes one of another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from .convert import OutputOption, report
from .generate import read_prompts, style_for
from .output import JsonFlag, consoles, quiet_libraries

__all__ = ["transfer"]

EXAMPLE = """Carry an adapter to another model.

Both models read the prompts, and two least-squares maps between what they
compute at layers of the same depth take the edit over (Command-V, arXiv
2506.19140).  Nothing is trained.  The table tells how much of the variance of
held-back prompts the maps explain: near 1 the edit arrives, near 0 it does
not.  Score the new adapter with `reftune eval` before you use it.

Example:

    reftune transfer my-adapter --to their-finetune --prompts questions.txt --output their-adapter
"""


def transfer(
    adapter: Annotated[str, typer.Argument(help="Folder or Hub name of the adapter.")],
    to: Annotated[str, typer.Option(help="The model that is to have it: a folder or a Hub name.")],
    prompts: Annotated[Path, typer.Option(help="File of prompts: lines of a text, or records; some hundreds.")],
    output: OutputOption,
    from_: Annotated[
        str | None, typer.Option("--from", help="Base model, in place of the one the adapter names.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    from ..interop.transfer import transfer as carried
    from ..models import load_tokenizer

    results, progress = consoles(as_json)
    quiet_libraries()
    style = style_for(adapter, load_tokenizer(to), chosen=None, console=progress)
    records = [style.record(p) if isinstance(p, str) else p for p in read_prompts(prompts)]
    _, matched, note = carried(adapter, output, target=to, prompts=records, source=from_)
    if not as_json:
        table = Table(title="explained of held-back prompts")
        for column in ("layer", "layer there", "there → here", "here → there"):
            table.add_column(column)
        for pair in matched:
            table.add_row(str(pair.source), str(pair.target), f"{pair.there:.3f}", f"{pair.back:.3f}")
        results.print(table)
    layers = [pair._asdict() for pair in matched]
    notes = [] if note is None else [note]
    mean = sum(min(pair.there, pair.back) for pair in matched) / len(matched)
    if mean < 0.5:
        said = "nothing" if mean <= 0 else "little"
        notes.append(
            f"the maps explain {said} of the other model's states (1 is all, 0 is no better than their mean): "
            "do not expect the adapter to work there; train it on that model instead"
        )
    report(results, output, notes, as_json=as_json, layers=layers)


transfer.__doc__ = EXAMPLE
