"""Two adapters side by side, as one page of HTML that holds its pictures and loads nothing.

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
    Pictures,
    Section,
    Table,
    Text,
    one_line,
)
from ...reporting.numbers import NONE
from ...reporting.page import to_html
from .against import layer_cells, next_facts
from .page import picture

__all__ = ["write_compared"]

Found = Mapping[str, Any]
# Answers that are shown before the rest is folded.
SHOWN = 12


def write_compared(found: Found, path: Path) -> Path:
    """Write the page; `found` is what `reftune explain --against --json` prints.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ReftuneError: nothing can be written there.
    """
    check_report()
    from ...reporting.svg import THEME  # noqa: PLC0415 — the extra `report`

    sections = [
        Section("Layer by layer", _layers(found)),
        Section("The next token", [Facts(next_facts(found))]),
        Section("The answers", _answers(found)),
    ]
    if found["notes"]:
        sections.append(Section("What could not be told", [Items(found["notes"])]))
    write_text(path, to_html(f"{found['adapter']} against {found['against']}", sections, theme=THEME))
    return path


def _layers(found: Found) -> list[Block]:
    from .plot import lines  # noqa: PLC0415 — the extra `report`

    rows = found["layers"]
    names = (found["adapter"], found["against"])

    def line(name: str, key: str, title: str, label: str) -> Any:
        known = [(row["layer"], row[key]) for row in rows if row[key] is not None]
        return picture(name, title, lines([x for x, _ in known], [(title, [y for _, y in known])], label=label))

    both = [row for row in rows if row["size"] is not None]
    sizes = [(name, [100 * row[key] for row in both]) for name, key in zip(names, ("size", "other_size"), strict=True)]
    pictures = [
        picture("size", "‖edit‖ / ‖stream‖, %", lines([row["layer"] for row in both], sizes, label="%")),
        line("cosine", "cosine", "Cosine of the edits", "cosine"),
        line("cka", "cka", "Linear CKA of the edits", "CKA"),
    ]
    angles = [(row["layer"], angle) for row in rows for angle in row["angles"] or ()]
    if angles:
        from .plot import points  # noqa: PLC0415 — the extra `report`

        figure = points(angles, label="degrees", top=93, ticks=(0, 30, 60, 90))
        pictures.append(picture("angles", "Principal angles of what they write into", figure))
    how = (
        "The edit of an adapter behind a layer is the difference that it makes to the base's stream there. Angles are "
        "between the directions that the two write into in that very layer; 90° is nothing in common."
    )
    heads = ("% of the stream", "% of the stream", "cosine", "CKA", "angles, degrees")
    below = (names[0], names[1], "", "", "smallest – largest")
    columns = [Column("layer", number=False), *(Column(head, under) for head, under in zip(heads, below, strict=True))]
    cells = [[Cell(str(row["layer"])), *(Cell(text) for text in layer_cells(row, NONE))] for row in rows]
    return [Pictures(pictures, how), Fold("Every layer", [Table(columns, cells, "Edits side by side")])]


def _answers(found: Found) -> list[Block]:
    answers = found["answers"]
    facts = [("the same", f"{answers['same']} of {answers['prompts']} answers, token by token")]
    columns = [Column("prompt", number=False), Column(found["adapter"], number=False)]
    columns += [Column(found["against"], number=False), Column("same tokens")]

    def table(rows: Sequence[Found], title: str) -> Table:
        cells = [
            [
                Cell(one_line(row["prompt"])[-200:]),
                Cell(one_line(row["answer"])),
                Cell(one_line(row["other"]), strong=not row["same"]),
                Cell("all" if row["same"] else str(row["common"])),
            ]
            for row in rows
        ]
        return Table(columns, cells, title)

    blocks: list[Block] = [Facts(facts)]
    rows = sorted(answers["rows"], key=lambda row: row["same"])
    blocks.append(table(rows[:SHOWN], "Answers, the different ones first"))
    if rows[SHOWN:]:
        blocks.append(Fold("All other answers", [table(rows[SHOWN:], "Further answers")]))
    blocks.append(Text("Same tokens: how many both begin with."))
    return blocks
