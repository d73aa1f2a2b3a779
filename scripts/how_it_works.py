"""Makes the pictures of docs/how-it-works.md: `python scripts/how_it_works.py`.

Which tokens are edited is asked of the package, so the pictures cannot tell otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")

import torch
from matplotlib import pyplot
from matplotlib.patches import Patch, Rectangle

from reftune.positions import parse_positions, segments_of_full_rows, token_units

PICTURES = Path(__file__).parent.parent / "docs" / "img"
PROMPT = ("Is", "this", "good", "or", "bad", "?", "A", "great", "film", ":")
ANSWER = ("good", ".", "I", "laughed")
BLOCKS = 6
# read on a light page and on a dark one; the background is the page's
TEXT, IDLE, ONCE, STEP, EDIT = "#808080", "#80808022", "#8fb8de", "#3b7dd8", "#f28c28"
STYLE = {"font.size": 9, "text.color": TEXT, "svg.hashsalt": "reftune", "svg.fonttype": "path"}


def edited(positions: str) -> set[int]:
    """Columns of the conversation above that are edited, prompt and answer."""
    whole = len(PROMPT) + len(ANSWER)
    full = segments_of_full_rows(1, whole, torch.device("cpu"))
    row = full._replace(end=torch.tensor([len(PROMPT)]))
    spec = parse_positions(positions)
    units = token_units(spec, "all", spec, row, 0, whole)[0]
    return {column for column, unit in enumerate(units.tolist()) if unit >= 0}


def grid(axes: Any, title: str, colour: Callable[[int, int], str], *, words: bool = True) -> None:
    """Blocks upwards, tokens to the right; `colour` of (block, column)."""
    tokens = (*PROMPT, *ANSWER)
    for block in range(BLOCKS):
        for column in range(len(tokens)):
            left = column + (0.5 if column >= len(PROMPT) else 0)
            axes.add_patch(Rectangle((left + 0.06, block + 0.06), 0.88, 0.88, color=colour(block, column), lw=0))
    if words:
        for column, word in enumerate(tokens):
            left = column + (0.5 if column >= len(PROMPT) else 0)
            axes.text(left + 0.5, -0.25, word, ha="center", va="top", rotation=45, fontsize=8)
    axes.text(-0.3, BLOCKS / 2, "blocks", rotation=90, ha="right", va="center", fontsize=8)
    axes.set_title(title, color=TEXT, fontsize=10, loc="left")
    axes.set_xlim(-1, len(tokens) + 0.7)
    axes.set_ylim(-2, BLOCKS)
    axes.set_aspect("equal")
    axes.axis("off")


def save(figure: Any, name: str, legend: dict[str, str]) -> None:
    handles = [Patch(color=colour, label=label) for label, colour in legend.items()]
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False, labelcolor=TEXT)
    figure.savefig(PICTURES / f"{name}.svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
    pyplot.close(figure)


def which_tokens() -> None:
    """Four choices of positions and layers."""
    choices = (
        ("f2+l2, all layers", "f2+l2", range(BLOCKS)),
        ("l1, one layer", "l1", [3]),
        ("prompt, the upper layers", "prompt", range(3, BLOCKS)),
        ("all, all layers", "prompt+response", range(BLOCKS)),
    )
    figure, axes = pyplot.subplots(2, 2, figsize=(9, 4.9), gridspec_kw={"hspace": 0.02})
    for place, (title, positions, layers) in zip(axes.flat, choices, strict=True):
        columns = edited(positions)
        grid(place, title, lambda b, c, at=columns, on=layers: EDIT if c in at and b in on else IDLE)
    save(figure, "how-positions", {"left alone": "#80808044", "edited": EDIT})


def decoding() -> None:
    """What an adapter computes for the answer."""
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 2.6))
    columns = edited("f2+l2")
    grid(axes[0], "LoRA: at every token of every block", lambda b, c: EDIT)
    grid(axes[1], "ReFT, f2+l2: nothing for the answer", lambda b, c: EDIT if c in columns else IDLE)
    save(figure, "how-decoding", {"the base model alone": "#80808044", "the adapter computes too": EDIT})


def reuse() -> None:
    """What an epoch computes anew."""
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 2.6))

    def of(positions: str, lowest: int) -> Callable[[int, int], str]:
        columns = edited(positions)
        first = min(columns)

        def colour(block: int, column: int) -> str:
            if block >= lowest and column in columns:
                return EDIT
            return STEP if block > lowest and column >= first else ONCE

        return colour

    grid(axes[0], "l2 from block 3 on", of("l2", 2))
    grid(axes[1], "f2+l2 in all blocks", of("f2+l2", 0))
    legend = {"once, before the first step": ONCE, "in every step": STEP, "in every step, and edited": EDIT}
    save(figure, "how-reuse", legend)


def main() -> None:
    pyplot.rcParams.update(STYLE)
    which_tokens()
    decoding()
    reuse()


if __name__ == "__main__":
    main()
