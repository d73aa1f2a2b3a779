"""`reftune merge`: several adapters of one model become one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table

from ..data.style import STYLE_FILE
from .convert import OutputOption, report
from .output import JsonFlag, consoles, quiet_libraries, say

__all__ = ["merge"]

EXAMPLE = """Make one adapter of several.

Modes: sum adds the edits where adapters edit the same tokens, which is exact;
orthogonalize first takes out of each later one what the earlier ones write
into; disjoint refuses adapters that edit the same tokens.  A table tells the
principal angles between what they write into, layer by layer: 90 degrees is
nothing in common, 0 the same.

Example:

    reftune merge german polite --mode orthogonalize --output both
"""


def merge(
    adapters: Annotated[list[str], typer.Argument(help="Folders or Hub names of two or more adapters.")],
    output: OutputOption,
    mode: Annotated[
        Literal["sum", "orthogonalize", "disjoint"], typer.Option(help="What becomes of edits of the same tokens.")
    ] = "sum",
    weights: Annotated[
        str | None, typer.Option(help="What each adapter's edits are multiplied by, with commas.  [1 each]")
    ] = None,
    base: Annotated[str | None, typer.Option(help="Base model, in place of the one the adapters name.")] = None,
    as_json: JsonFlag = False,
) -> None:
    from ..interop.merge import PICTURE
    from ..interop.merge import merge as merged

    results, _ = consoles(as_json)
    quiet_libraries()
    folder, angles = merged(adapters, output, mode=mode, weights=numbers(weights), base=base)
    picture = folder / PICTURE
    for pair in dict.fromkeys((one.first, one.second) for one in angles if not as_json):
        say(results, f"{pair[0]} and {pair[1]}: principal angles, degrees, the largest first")
        table = Table("component", "layer", "angles")
        for found in angles:
            if (found.first, found.second) == pair:
                degrees = " ".join(f"{angle:.0f}" for angle in found.degrees) or "-"
                table.add_row(found.component, str(found.layer), degrees)
        results.print(table)
    notes = [
        "the edits are added, abilities need not be: look at what it answers, and try smaller --weights; "
        "reftune compose teaches several abilities to one adapter"
    ]
    if not (folder / STYLE_FILE).is_file():
        notes.append("how prompts are put differs between them, or is not said: give --prompt-style when it is asked")
    notes += [f"the angles as a picture: {picture}"] if picture.is_file() else []
    report(results, Path(output), notes, as_json=as_json, angles=[found._asdict() for found in angles])


merge.__doc__ = EXAMPLE


def numbers(text: str | None) -> list[float] | None:
    """Numbers with commas."""
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not numbers with commas, such as 1,0.5") from None
