"""`reftune steer`: a steering vector from two kinds of prompts, without training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from .convert import BaseOption, OutputOption, report
from .generate import StyleOption, read_prompts
from .output import JsonFlag, consoles, quiet_libraries

__all__ = ["steer"]

EXAMPLE = """Make a steering vector of two kinds of prompts, without training.

The n-th positive prompt is the counterpart of the n-th negative one: the same
request, say, answered politely and rudely.  Directions of every layer are
tried on held-back pairs, and the one that tells them best apart is saved; the
dial (--strength of `reftune generate` and `chat`) says how much of it is added.

Example:

    reftune steer --base smollm2 --positive polite.txt --negative rude.txt --output polite
"""


def steer(
    positive: Annotated[Path, typer.Option(help="File of prompts: what is to be more of.")],
    negative: Annotated[Path, typer.Option(help="File of their counterparts.")],
    base: BaseOption,
    output: OutputOption,
    kinds: Annotated[str, typer.Option(help="Directions to try, with commas.")] = "difference,pca,probe",
    positions: Annotated[str, typer.Option(help="Tokens to add it to.")] = "all",
    prompt_style: StyleOption = None,
    as_json: JsonFlag = False,
) -> None:
    from ..data import PromptStyle
    from ..interop.steer import steer as made
    from ..models import load_tokenizer

    results, _ = consoles(as_json)
    quiet_libraries()
    style = PromptStyle(prompt_style or ("messages" if load_tokenizer(base).chat_template else "prompt"))
    sides = [
        [style.record(p) if isinstance(p, str) else p for p in read_prompts(file)] for file in (positive, negative)
    ]
    chosen = [kind.strip() for kind in kinds.split(",")]
    _, found, best = made(base, output, positive=sides[0], negative=sides[1], kinds=chosen, positions=positions)
    if not as_json:
        table = Table(title="held-back prompts told apart, the five best layers of each direction")
        for column in ("direction", "layer", "told apart", "distance"):
            table.add_column(column)
        for kind in chosen:
            of_kind = sorted((one for one in found if one.kind == kind), key=lambda one: -one.apart)[:5]
            for one in of_kind:
                mark = " *" if one is best else ""
                table.add_row(kind, f"{one.layer}{mark}", f"{one.apart:.2f}", f"{one.distance:.3g}")
        results.print(table)
    note = f"saved: {best.kind} at layer {best.layer}; strength 1 moves a state from one mean to the other"
    tried = [{"kind": d.kind, "layer": d.layer, "apart": d.apart, "distance": d.distance} for d in found]
    report(results, output, [note], as_json=as_json, tried=tried)


steer.__doc__ = EXAMPLE
