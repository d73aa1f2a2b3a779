"""What cells of memorisation come to: `results.json`, a table in Markdown, and a heat map.

Must not know: how cells are trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..files import read_lines, whole, write_json, write_text
from ..reporting import check_report
from ..reporting.machine import hardware, versions
from .memorise import CELLS, CODEBOOK, TEXTS

__all__ = ["TITLES", "longest_held", "results_of", "write_memorised"]

TITLE = "What one rank-1 edit of one layer holds"
TITLES = {
    "alice": "Alice in Wonderland",
    "scrambled": "Words of Alice, scrambled",
    "random": "Random tokens",
    CODEBOOK: "Codebook",
}
UNITS = {**dict.fromkeys(TEXTS, "tokens"), CODEBOOK: "entries"}

Line = Mapping[str, Any]


def results_of(output: Path, cells: Sequence[Line]) -> dict[str, Any]:
    """These cells and all others of the folder that are of the same model and seed and trained as long.

    Of a kind that is not among these cells, as long as the last one that the folder has of it.
    """
    lines = read_lines(output / CELLS)
    wanted = {_protocol(line)[0]: _protocol(line) for line in [*_of_model(lines, cells[0]), *cells]}
    kept = {line["key"]: line for line in _of_model(lines, cells[0]) if _protocol(line) == wanted[line["kind"]]}
    kinds = list(TITLES)
    found = sorted(kept.values(), key=lambda line: (kinds.index(line["kind"]), line["layer"], line["size"]))
    return {
        "title": TITLE,
        "commands": list(dict.fromkeys(line["command"] for line in lines if line["key"] in kept)),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "hardware": hardware(),
        "versions": versions(),
        "model": cells[0]["model"],
        "parameters": cells[0]["parameters"],
        "seed": cells[0]["seed"],
        "seconds": round(sum(line["seconds"] for line in found), 1),
        "longest_held": {kind: longest_held(line for line in found if line["kind"] == kind) for kind in TEXTS},
        "cells": found,
    }


def _of_model(lines: Iterable[Line], first: Line) -> list[Line]:
    return [line for line in lines if all(line[name] == first[name] for name in ("model", "dtype", "seed"))]


def _protocol(line: Line) -> tuple[Any, ...]:
    return tuple(line[name] for name in ("kind", "epochs", "learning_rate", "batch_size"))


def longest_held(lines: Iterable[Line]) -> dict[str, int]:
    """By layer, the longest prefix that was given back in any cell."""
    found: dict[int, int] = {}
    for line in lines:
        found[line["layer"]] = max(found.get(line["layer"], 0), line["held"])
    return {str(layer): held for layer, held in sorted(found.items())}


def write_memorised(results: Mapping[str, Any], output: Path) -> list[Path]:
    """Write `results.json`, `memorised.md`, `memorised.svg` and `memorised.png`.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    check_report()
    # the extra `report`
    from ..reporting.svg import PAPER, measured, to_svg  # noqa: PLC0415
    from .memorise_plot import heat_map  # noqa: PLC0415

    paths = [output / name for name in ("results.json", "memorised.md", "memorised.svg", "memorised.png")]
    write_json(paths[0], results)
    write_text(paths[1], markdown(results))
    by_kind = _by_kind(results["cells"])
    figure = heat_map(
        {TITLES[kind]: cells for kind, cells in by_kind.items()},
        {TITLES[kind]: UNITS[kind] for kind in by_kind},
    )
    with measured():
        write_text(paths[2], to_svg(figure, name="memorised", title=TITLE))
        with whole(paths[3]) as part:
            figure.savefig(part, format="png", dpi=160, facecolor=PAPER, metadata={"Software": None})
    return paths


def markdown(results: Mapping[str, Any]) -> str:
    """The table of each kind, and how the numbers came about."""
    parts = [
        f"# {results['title']}",
        f"{results['model']}: `h + Rᵀ(b − Rh)` at the last prompt token of one layer, {results['parameters']:,} "
        f"parameters. {results['date']}, {results['hardware']}, {results['seconds']:,.0f} s in all, "
        f"seed {results['seed']}.",
        "![share and amount held, by layer and length](memorised.svg)",
    ]
    for kind, cells in _by_kind(results["cells"]).items():
        parts += [f"## {TITLES[kind]}", _protocol_in_words(kind, cells), _table(kind, cells)]
    parts += ["## Commands", "```sh\n" + "\n".join(results["commands"]) + "\n```"]
    return "\n\n".join(parts) + "\n"


def _protocol_in_words(kind: str, cells: Sequence[Line]) -> str:
    first = cells[0]
    what = (
        "Entries whose token greedy generation gives"
        if kind == CODEBOOK
        else "Tokens that greedy generation gives back before the first wrong one"
    )
    stopped = sum(line["stopped"] for line in cells)
    return (
        f"{what}, and their share. Up to {first['epochs']:,} epochs, AdamW {first['learning_rate']:g} falling linearly "
        f"to 0, batch {first['batch_size']}; {stopped} of {len(cells)} cells stopped earlier, when all was given back."
    )


def _table(kind: str, cells: Sequence[Line]) -> str:
    sizes = sorted({line["size"] for line in cells})
    layers = sorted({line["layer"] for line in cells})
    at = {(line["layer"], line["size"]): line for line in cells}
    # of a codebook nothing is longest: its entries do not follow one another
    longest = longest_held(cells) if kind != CODEBOOK else {}
    head = ["layer", *(f"{size} {UNITS[kind]}" for size in sizes), *(["longest prefix"] if longest else [])]
    rows = [
        [
            str(layer),
            *(_shown(at.get((layer, size))) for size in sizes),
            *([str(longest[str(layer)])] if longest else []),
        ]
        for layer in layers
    ]
    lines = [head, ["---:"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _shown(line: Line | None) -> str:
    return "not tried" if line is None else f"{line['held']} ({100 * line['recall']:.0f} %)"


def _by_kind(cells: Iterable[Line]) -> dict[str, list[Line]]:
    found: dict[str, list[Line]] = {}
    for line in cells:
        found.setdefault(line["kind"], []).append(line)
    return found
