"""Answers to instructions as Alpaca-Eval reads them, and the pairs of a model's and a reference's answer.

A file is a JSON list of {"instruction", "output", "generator", "dataset"}.  JSON Lines are read as well, so that what
`evaluate_rows` wrote can be judged as it is.

Must not know: models, judges.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...data.records import read_rows
from ...errors import DataError
from ...files import write_json

__all__ = ["Answers", "Pair", "alpaca_rows", "pair_up", "read_answers", "write_alpaca_eval"]


@dataclass(frozen=True)
class Answers:
    """Answers of one model, by instruction."""

    name: str
    """The `generator` of the rows if they agree on one, else the name of the file."""
    outputs: Mapping[str, str]


@dataclass(frozen=True)
class Pair:
    """Two answers to one instruction."""

    instruction: str
    model: str
    reference: str


def alpaca_rows(examples: Iterable[Mapping[str, Any]], *, generator: str) -> list[dict[str, str]]:
    """Examples of `evaluate_rows` (`instruction`, `output`, and `dataset` where it is known) as Alpaca-Eval's rows.

    Raises:
        DataError: an example without an instruction or an output.
    """
    rows = []
    for number, example in enumerate(examples, start=1):
        _check(example, f"example {number}")
        answer = {"instruction": example["instruction"], "output": example["output"]}
        rows.append({**answer, "generator": generator, "dataset": example.get("dataset") or ""})
    return rows


def write_alpaca_eval(examples: Iterable[Mapping[str, Any]], path: str | Path, *, generator: str) -> None:
    """The file for `alpaca_eval --model_outputs` and `reftune judge`.  Alpaca-Eval takes only the suffix .json."""
    path = Path(path)
    if path.suffix != ".json":
        raise DataError(f"{str(path)!r}: Alpaca-Eval reads a JSON list only from a file that ends in .json")
    write_json(path, alpaca_rows(examples, generator=generator))


def read_answers(path: str | Path) -> Answers:
    """Answers in a file (.json, .jsonl, each also .gz).  An `input`, where there is one, belongs to the instruction.

    Raises:
        DataError: no such file, a row that lacks something, or an instruction twice.
    """
    rows = read_rows(Path(path))
    rows.map(_check)
    asked = [_instruction(row) for row in rows.records]
    twice = [text for text, count in Counter(asked).items() if count > 1]
    if twice:
        raise DataError(
            f"{path}: {len(twice)} instructions occur more than once, the first is {_short(twice[0])}; answers are "
            f"paired by their instruction"
        )
    if not asked:
        raise DataError(f"{path}: no rows")
    names = {row.get("generator") for row in rows.records}
    name = names.pop() if len(names) == 1 else None
    return Answers(
        name=name if isinstance(name, str) and name else Path(path).name.partition(".")[0],
        outputs={text: row["output"] for text, row in zip(asked, rows.records, strict=True)},
    )


def pair_up(model: Answers, reference: Answers) -> tuple[list[Pair], int]:
    """The pairs, in the order of the model's answers, and the number of its answers that have no reference.

    Raises:
        DataError: not one pair.
    """
    shared = [text for text in model.outputs if text in reference.outputs]
    if not shared:
        raise DataError(
            f"no instruction of {model.name!r} is in {reference.name!r}: the one begins with "
            f"{_short(next(iter(model.outputs)))}, the other with {_short(next(iter(reference.outputs)))}"
        )
    pairs = [Pair(text, model.outputs[text], reference.outputs[text]) for text in shared]
    return pairs, len(model.outputs) - len(shared)


def _check(row: Any, where: str = "") -> None:
    place = f"{where}: " if where else ""
    if not isinstance(row, Mapping):
        raise DataError(f"{place}a row is an object with 'instruction' and 'output', not {type(row).__name__}")
    for name in ("instruction", "output"):
        if not isinstance(row.get(name), str):
            found = f"{row[name]!r}" if name in row else f"only {', '.join(map(repr, row))}"
            raise DataError(f"{place}a row needs the text {name!r}; there is {found}")


def _instruction(row: Mapping[str, Any]) -> str:
    extra = row.get("input")
    return f"{row['instruction']}\n\n{extra}" if isinstance(extra, str) and extra else row["instruction"]


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
