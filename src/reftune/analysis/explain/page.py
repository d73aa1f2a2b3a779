"""What `explained` found, as one page of HTML that holds its pictures and loads nothing.

Must not know: how numbers came about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...files import write_text
from ...reporting import check_report
from ...reporting.blocks import (
    Block,
    Cell,
    Column,
    Facts,
    Fold,
    Items,
    Picture,
    Pictures,
    Section,
    Table,
    Text,
    Token,
    Tokens,
    one_line,
)
from ...reporting.numbers import NONE, significant
from ...reporting.page import to_html
from ...values import ranges

__all__ = ["picture", "write_explained"]

Found = Mapping[str, Any]
# Rows of a table before the rest is folded.
SHOWN = 12


def write_explained(found: Found, path: Path) -> Path:
    """Write the page; `found` is what `explained` returned, with the name of the `adapter`.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ReftuneError: nothing can be written there.
    """
    check_report()
    from ...reporting.svg import THEME  # noqa: PLC0415 — the extra `report`

    makers = {
        "size": ("Where and how much", _size),
        "basis": ("In which direction", _direction),
        "next": ("To what effect", _effect),
        "matters": ("What matters", _matters),
        "patching": ("What each edit does alone", _patching),
    }
    sections = [Section("The text", _text(found))]
    sections += [Section(title, make(found)) for part, (title, make) in makers.items() if part in found]
    if found["notes"]:
        sections.append(Section("What could not be told", [Items(found["notes"])]))
    write_text(path, to_html(f"What {found['adapter']} does", sections, theme=THEME))
    return path


def picture(name: str, title: str, figure: Any, caption: str = "") -> Picture:
    """A figure as a block."""
    from ...reporting.svg import measured, to_svg  # noqa: PLC0415 — the extra `report`

    with measured():
        return Picture(name, title, to_svg(figure, name=name, title=title), caption)


def _text(found: Found) -> list[Block]:
    text = found["text"]
    edits: dict[int, list[Found]] = {}
    for line in found["edits"]:
        edits.setdefault(line["column"], []).append(line)
    most = max((line["ratio"] for line in found["edits"]), default=0.0) or 1.0
    after = {line["column"] + 1: line for line in found.get("next", ())}
    patching = found.get("patching", {"columns": [], "alone": []})
    alone = dict(zip(patching["columns"], patching["alone"], strict=True))
    tokens = []
    for column, (piece, label) in enumerate(zip(text["tokens"], text["positions"], strict=True)):
        here = edits.get(column, [])
        largest = max(here, key=lambda line: line["ratio"], default=None)
        note = [f"{label} {piece!r}"]
        if largest is not None:
            mean = sum(line["ratio"] for line in here) / len(here)
            note.append(
                f"edited at {len(here)} sites: {100 * mean:.1f} % of the state on average, "
                f"{100 * largest['ratio']:.1f} % at {largest['site']}"
            )
        if alone.get(column) is not None:
            note.append(f"its edits alone: {100 * alone[column]:.1f} % of the effect")
        if column in after:
            line = after[column]
            note.append(f"p {line['p_base']:.3g} → {line['p_adapter']:.3g} by the adapter, KL {line['kl']:.3f} nats")
        share = 0.0 if largest is None else 0.75 * largest["ratio"] / most
        tokens.append(Token(piece, share, "\n".join(note) if len(note) > 1 else ""))
    facts = [
        ("answer", one_line(text["answer"])),
        ("prompt", f"{text['prompt_length']} tokens"),
        ("edited", f"{len(edits)} tokens, at {len(found['sites'])} sites"),
    ]
    return [
        Facts(facts),
        Tokens(tokens),
        Text("The darker, the larger the largest edit. Point at a token, or touch it, to read its numbers."),
    ]


def _size(found: Found) -> list[Block]:
    from .plot import heat_map  # noqa: PLC0415 — the extra `report`

    size, count = found["size"], found["texts"]
    pictures = [
        picture(
            "size",
            "Norm of the edit, % of that of the state",
            heat_map(size["mean"], size["sites"], size["positions"]),
            f"mean of {count} texts" if count > 1 else "this text",
        )
    ]
    if count > 1:
        figure = heat_map(size["std"], size["sites"], size["positions"])
        pictures.append(picture("spread", "Spread over the texts, %", figure))
    how = "f1 is the first token of the prompt, l1 the last, r1 the first of the answer."
    return [Pictures(pictures, how)]


def _tokens(tokens: Sequence[Found] | None, value: str = "") -> Cell:
    if tokens is None:
        return Cell(NONE)
    return Cell(" · ".join(f"{t['token']!r}" + (f" {t[value]:.2f}" if value else "") for t in tokens))


def _direction(found: Found) -> list[Block]:
    edits = sorted(found["edits"], key=lambda line: -line["ratio"])
    heads = [Column("site", number=False), Column("token", number=False), Column("edit / state, %")]
    lens = [Column("promotes", number=False), Column("suppresses", number=False)]
    blocks: list[Block] = [
        Text(
            "The logit lens: final norm and head applied to the edit, or to a row of the basis, as if it were the last "
            "state. It tells what later layers leave of a direction only if they leave it alone."
        )
    ]

    def rows(lines: Sequence[Found]) -> list[list[Cell]]:
        return [
            [
                Cell(line["site"]),
                Cell(f"{line['position']} {line['token']!r}"),
                Cell(f"{100 * line['ratio']:.1f}"),
                _tokens(line.get("promotes")),
                _tokens(line.get("suppresses")),
            ]
            for line in lines
        ]

    blocks.append(Table([*heads, *lens], rows(edits[:SHOWN]), "The largest edits"))
    if edits[SHOWN:]:
        blocks.append(Fold("All other edits", [Table([*heads, *lens], rows(edits[SHOWN:]), "Smaller edits")]))
    moved = [
        [Cell(e["site"]), Cell(f"{e['position']} {e['token']!r}"), _numbers(e["before"]), _numbers(e["after"])]
        for e in edits
        if "before" in e
    ]
    columns = [*heads[:2], Column("before", number=False), Column("after", number=False)]
    if moved:
        blocks.append(Fold("Coordinates in the basis", [Table(columns, moved, "basis · h before and after the edit")]))
    basis = [
        [Cell(f"{row['site']} Φ{row['phi']} row {row['row']}"), _tokens(row["promotes"]), _tokens(row["suppresses"])]
        for row in found["basis"]
    ]
    if basis:
        table = Table([Column("row of the basis", number=False), *lens], basis, "Rows of the basis, by the logit lens")
        blocks.append(Fold("Rows of the basis", [table]))
    return blocks


def _numbers(values: Sequence[float]) -> Cell:
    return Cell(" ".join(significant(value) for value in values))


def _effect(found: Found) -> list[Block]:
    from .plot import lines  # noqa: PLC0415 — the extra `report`

    columns = [
        Column("after", number=False),
        Column("KL, nats"),
        Column("base", number=False),
        Column("adapter", number=False),
    ]

    def rows(name: str, part: Sequence[Found]) -> list[list[Cell]]:
        return [
            [
                Cell(line[name] if name == "site" else repr(line[name])),
                Cell(f"{line['kl']:.3f}"),
                _tokens(line["base"], "p"),
                _tokens(line["adapter"], "p"),
            ]
            for line in part
        ]

    blocks: list[Block] = [Table(columns, rows("after", found["next"]), "The next token, KL(adapter ‖ base)")]
    along = found["along"]
    if along:
        x = [line["layer"] for line in along]
        pictures = [
            picture(
                "kl",
                "KL(adapter ‖ base) behind each layer, nats",
                lines(x, [("KL", [line["kl"] for line in along])], label="nats"),
            )
        ]
        if along[0]["p_base"] is not None:
            series = [(name, [line[f"p_{name}"] for line in along]) for name in ("adapter", "base")]
            pictures.append(picture("p", "Probability of the first answer token", lines(x, series, label="p")))
        blocks.append(Pictures(pictures, "Along the layers, by the logit lens at the last token of the prompt."))
        table = Table([Column("behind", number=False), *columns[1:]], rows("site", along), "By the logit lens")
        blocks.append(Fold("Every layer", [table]))
    return blocks


def _matters(found: Found) -> list[Block]:
    from .plot import bars  # noqa: PLC0415 — the extra `report`

    matters = found["matters"]
    effect = matters["adapter"] - matters["base"]
    facts = [
        ("log-likelihood", f"base {matters['base']:.2f}, adapter {matters['adapter']:.2f} nats"),
        ("effect", f"{effect:.2f} nats over {matters['tokens']} tokens of {matters['texts']} texts"),
    ]
    smallest = matters["smallest"]
    if smallest is not None:
        share = f"{100 * smallest['share']:.1f} %"
        facts.append(("smallest set", f"layers {ranges(smallest['layers'])} alone keep {share} of the effect"))
    blocks: list[Block] = [Facts(facts)]
    by = "loss" if effect > 0 else "kl"
    pictures = []
    for kind, name in (("layers", "layer"), ("positions", "position")):
        some = matters[kind][: 2 * SHOWN]
        figure = bars([str(row[name]) for row in some], [row[by] for row in some], label="nats")
        title = f"{'Loss' if by == 'loss' else 'KL from the adapter'} without one {name}"
        pictures.append(picture(kind, title, figure))
    blocks.append(Pictures(pictures))
    for kind in ("layers", "positions", "rows"):
        columns = [Column(kind, number=False), Column("loss, nats"), Column("share, %"), Column("KL, nats")]
        rows = [
            [
                Cell(_name(row)),
                Cell(f"{row['loss']:.3f}"),
                Cell(NONE if row["share"] is None else f"{100 * row['share']:.1f}"),
                Cell(f"{row['kl']:.3f}"),
            ]
            for row in matters[kind]
        ]
        title = "Without one row of the rank" if kind == "rows" else f"Without one of the {kind}"
        blocks.append(Fold(title, [Table(columns, rows, title)]))
    return blocks


def _name(row: Found) -> str:
    if "row" in row:
        return f"{row['site']} Φ{row['phi']} row {row['row']}"
    return str(row.get("layer", row.get("position")))


def _patching(found: Found) -> list[Block]:
    from .plot import heat_map  # noqa: PLC0415 — the extra `report`

    patching = found["patching"]
    names = [
        f"{label} {one_line(token) or '⏎'}"
        for label, token in zip(patching["positions"], patching["tokens"], strict=True)
    ]
    in_shares = any(cell is not None for row in patching["share"] for cell in row)
    cells, what = (patching["share"], "% of the effect") if in_shares else (patching["gain"], "nats × 100")
    figure = heat_map(cells, patching["sites"], names)
    caption = "only this site edits, and only at this token; red: the answer becomes less likely"
    return [Pictures([picture("patching", f"One edit alone, {what}", figure, caption)])]
