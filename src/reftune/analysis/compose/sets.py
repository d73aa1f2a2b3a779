"""Sets of records by name, made of files of the data folder, beside people's own files.

Must not know: models, rules.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...data.records import read_records, read_rows
from ...errors import DataError
from ...evaluation.data import DATA_VARIABLE

__all__ = ["SETS", "records_of"]

MULTI30K = "composition/multi30k_en_de.train.jsonl.gz"
ALPACA = "instruction/alpaca_random_9k.train.jsonl.gz"
ULTRAFEEDBACK = "instruction/ultrafeedback_1k.train.jsonl.gz"
# words of an answer that is written in capitals, and of one that is short
CAPITALS_FROM, CAPITALS_TO, SHORT_TO = 8, 40, 3

Row = Mapping[str, Any]
Made = dict[str, Any] | None


def german(row: Row) -> Made:
    """The first half of the English sentence, to be gone on with by the second half of the German one."""
    asked, answered = row["en"].split(), row["de"].split()
    half = len(answered) // 2
    if len(asked) < 4 or len(answered) < 4:
        return None
    return {"instruction": " ".join(asked[: len(asked) // 2]), "output": " ".join(answered[half:])}


def plain(row: Row) -> dict[str, Any]:
    """An instruction and its answer."""
    return {name: row[name] for name in ("instruction", "input", "output") if row.get(name)}


def shouted(row: Row) -> Made:
    """An instruction whose answer of some words is written in capitals."""
    long = CAPITALS_FROM <= len(row["output"].split()) <= CAPITALS_TO
    return {**plain(row), "output": row["output"].upper()} if long and not row.get("input") else None


def short(row: Row) -> Made:
    """An instruction whose answer is at most three words."""
    return plain(row) if 1 <= len(row["output"].split()) <= SHORT_TO else None


SETS: dict[str, tuple[str, Callable[[Row], Made]]] = {
    "german": (MULTI30K, german),
    "instructions": (ULTRAFEEDBACK, plain),
    "capitals": (ALPACA, shouted),
    "short": (ALPACA, short),
}


def records_of(source: str, *, data_dir: str | Path | None = None) -> list[dict[str, Any]]:
    """Checked records of a set by name, or of a file or Hub name.

    Raises:
        DataError: they cannot be had; a set by name needs the data folder.
    """
    if source not in SETS or Path(source).exists():
        return list(read_records(source).records)
    file, made_of = SETS[source]
    folder = data_dir or os.environ.get(DATA_VARIABLE)
    if not folder:
        raise DataError(
            f"the set {source!r} is made of {file} of the data folder: name that by --data-dir or {DATA_VARIABLE}, or "
            "give a file of records"
        )
    made = [made_of(row) for row in read_rows(Path(folder) / file).records]
    return [row for row in made if row is not None]
