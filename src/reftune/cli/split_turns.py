"""`reftune split-turns`: a file of conversations with a row for each answer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..data.records import read_records
from ..data.turns import split_record
from ..errors import ReftuneError
from ..files import check_writable, write_lines
from .output import JsonFlag, consoles, emit, say

__all__ = ["split_turns"]

EXAMPLE = """Write conversations with a row for each answer of the assistant.

Examples:

    reftune split-turns chats.jsonl turns.jsonl

Positions at the end of the prompt are then trained as each answer will be
generated: behind all that came before it, whatever program trains. In
reftune, train_on="all" does the same without a file.
"""


def split_turns(
    source: Annotated[str, typer.Argument(help="File or Hub name of records.", metavar="IN")],
    output: Annotated[Path, typer.Argument(help="JSON Lines to write.", metavar="OUT.jsonl")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it is there.")] = False,
    as_json: JsonFlag = False,
) -> None:
    results, _ = consoles(as_json)
    if output.exists() and not overwrite:
        raise ReftuneError(f"{str(output)!r} is there already; use --overwrite to replace it, or another name")
    check_writable(output.parent)
    rows = read_records(source)
    answers = [answer for answers in rows.map(split_record) for answer in answers]
    # columns that only other rows of a table have
    write_lines(output, ({name: value for name, value in row.items() if value is not None} for row in answers))
    if as_json:
        emit({"rows": len(rows), "answers": len(answers), "output": str(output)})
        return
    say(results, f"{len(rows):,} rows have {len(answers):,} answers, each a row of {output}")


split_turns.__doc__ = EXAMPLE
