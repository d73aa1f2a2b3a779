"""`reftune steer`: a steering vector from two kinds of prompts, without training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from .convert import BaseOption, OutputOption, report
from .generate import StyleOption, read_prompts
from .output import JsonFlag, consoles, progress_bars, quiet_libraries, say

if TYPE_CHECKING:
    from ..interop.steer import Steered, Trial

__all__ = ["steer"]

# a divergence that is still so much of what it was has hardly changed
LITTLE = 0.8
EXAMPLE = """Make a steering vector of two kinds of prompts, without training.

The n-th positive prompt is the counterpart of the n-th negative one: the same
request, say, answered politely and rudely.  Of the directions of every layer
those that tell held-back pairs best apart are added to the negative prompts in
several lengths, and the one is saved by which the next token is most as behind
the positive ones; the dial (--strength of `reftune generate` and `chat`) says
how much of that is added.

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

    results, progress = consoles(as_json)
    quiet_libraries()
    style = PromptStyle(prompt_style or ("messages" if load_tokenizer(base).chat_template else "prompt"))
    sides = [
        [style.record(p) if isinstance(p, str) else p for p in read_prompts(file)] for file in (positive, negative)
    ]
    chosen = [kind.strip() for kind in kinds.split(",")]
    say(progress, f"reading {len(sides[0])} + {len(sides[1])} prompts, and the hidden states behind every layer")
    with progress_bars(progress) as bars:
        bar = bars.add_task("directions tried in the model", total=None, note="")

        def tell(done: int, total: int) -> None:
            bars.update(bar, completed=done, total=total)

        found = made(
            base, output, positive=sides[0], negative=sides[1], kinds=chosen, positions=positions, on_trial=tell
        )
    if not as_json:
        _print(results, found, chosen)
    best, without = found.best, found.without
    saved = (
        f"saved: {best.direction.kind} at layer {best.direction.layer}, {best.part:g} of the distance between the means"
    )
    if best.divergence < without:
        note = f"{saved}, which is the strength 1; it takes the divergence from {without:.3g} to {best.divergence:.3g}"
        if best.divergence > LITTLE * without:
            note += ": so little that no effect is to be expected; these pairs hardly differ in what follows them"
    else:
        note = (
            f"{saved}, which is the strength 1; no direction in no length brought the negative prompts nearer to the "
            f"positive ones than {without:.3g}, so the one that tells most apart was taken"
        )
    tried = [{"kind": d.kind, "layer": d.layer, "apart": d.apart, "distance": d.distance} for d in found.found]
    lengths = [
        {"kind": t.direction.kind, "layer": t.direction.layer, "part": t.part, "divergence": t.divergence}
        for t in found.trials
    ]
    report(results, output, [note], as_json=as_json, tried=tried, lengths=lengths, without=without)


def _print(console: Console, found: Steered, kinds: list[str]) -> None:
    """What tells held-back prompts apart, and what the best of that do in the model."""
    best = found.best
    table = Table(title="held-back prompts told apart, the five best layers of each direction")
    for column in ("direction", "layer", "told apart", "distance"):
        table.add_column(column)
    for kind in kinds:
        own = [one for one in found.found if one.kind == kind]
        for one in own[:5] + [one for one in own[5:] if one is best.direction]:
            mark = " *" if one is best.direction else ""
            table.add_row(kind, f"{one.layer}{mark}", f"{one.apart:.2f}", f"{one.distance:.3g}")
    console.print(table)
    parts = sorted({trial.part for trial in found.trials})
    lengths = Table(title="how far the next token is from that of the positive prompts (KL, nats), by length")
    for column in ("direction", "layer", "0", *(f"{part:g}" for part in parts)):
        lengths.add_column(column)
    of: dict[int, dict[float, Trial]] = {}
    for trial in found.trials:
        of.setdefault(id(trial.direction), {})[trial.part] = trial
    for row in of.values():
        one = row[parts[0]].direction
        cells = [f"{row[part].divergence:.3g}{' *' if row[part] is best else ''}" for part in parts]
        lengths.add_row(one.kind, str(one.layer), f"{found.without:.3g}", *cells)
    console.print(lengths)


steer.__doc__ = EXAMPLE
