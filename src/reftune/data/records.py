"""Files, lists, Datasets and Hub names to checked rows; an error says in which file and which row.

Files are parsed here and not by `datasets`, whose errors do not tell the row.  A place is the 1-based line of a JSON
Lines file, and the 1-based data row of anything else.

Must not know: tokenizers, templates.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import logging
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from reftune.data.kinds import COLUMNS, OTHER_NAMES, Record, check_record, with_usual_names
from reftune.data.strict import parse_json
from reftune.errors import DataError, MissingExtraError

if TYPE_CHECKING:
    import datasets

__all__ = ["RecordSource", "Rows", "load_datasets", "load_records", "read_records", "read_rows"]

RecordSource: TypeAlias = "str | os.PathLike[str] | list[dict[str, Any]] | datasets.Dataset"

Result = TypeVar("Result")

logger = logging.getLogger("reftune")

_SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True)
class Rows:
    """Rows, and where each was read: `numbers` has their lines or rows, None for all rows in order."""

    records: Any
    """A list of dicts or a Dataset."""
    name: str
    unit: str = "row"
    numbers: Sequence[int] | None = None

    def __len__(self) -> int:
        return len(self.records)

    def map(self, function: Callable[[Record], Result]) -> list[Result]:
        """`function` of every row.  All rows that it refuses are counted, so that they can be mended at one go."""
        results: list[Result] = []
        refused: list[int] = []
        first: DataError | None = None
        for index, record in enumerate(self.records):
            try:
                results.append(function(record))
            except DataError as error:
                first = first or error
                refused.append(index)
        if first is not None:
            raise DataError(self._complaint(refused, first)) from first
        return results

    def _complaint(self, refused: list[int], first: DataError) -> str:
        places = [index + 1 if self.numbers is None else self.numbers[index] for index in refused]
        more = ""
        if len(places) > 1:
            shown = ", ".join(map(str, places[1:6])) + (", ..." if len(places) > 6 else "")
            more = f" ({len(places) - 1} more unusable, {self.unit} {shown})"
        return f"{self.name}, {self.unit} {places[0]}: {first}{more}"


def load_records(source: RecordSource, *, split: str = "train", need_response: bool = True) -> datasets.Dataset:
    """Checked rows of a local file (.json, .jsonl, .csv, .parquet, each also .gz), a list, a Dataset or a Hub name.

    `split` is for Hub names.  With `need_response=False` rows may lack the response (prompts to generate from).
    """
    rows = read_records(source, split=split, need_response=need_response)
    if isinstance(rows.records, load_datasets().Dataset):
        return rows.records
    return _to_dataset(rows)


def read_records(source: RecordSource, *, split: str = "train", need_response: bool = True) -> Rows:
    """What `load_records` loads, still knowing the place of each row and free of what a table does to nested values."""
    rows = _read(source, split)
    if not len(rows):
        raise DataError(f"{rows.name}: no rows")
    rows = _usual(rows)
    rows.map(lambda record: check_record(record, need_response=need_response))
    return rows


def _usual(rows: Rows) -> Rows:
    """The same rows with the columns of `OTHER_NAMES`, where they have these, also under our names."""
    records = rows.records
    if isinstance(records, list):
        return replace(rows, records=[with_usual_names(record) for record in records])
    if not any(set(records.column_names) >= set(pair) for pair in OTHER_NAMES):
        return rows
    labels = getattr(records.features.get("label"), "names", None)
    return replace(rows, records=[with_usual_names(record, labels) for record in records])


def _read(source: RecordSource, split: str) -> Rows:
    if isinstance(source, (list, tuple)):
        rows = Rows(source, "the list")
    elif isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if not path.exists() and _is_hub_name(source):
            return _read_hub(str(source), split)
        rows = read_rows(path)
    elif isinstance(source, load_datasets().Dataset):
        # A format (numpy, torch) would turn strings and numbers into other types.
        rows = Rows(source.with_format(None), "the Dataset")
    else:
        valid = "a file, a Hub name, a list of rows or a datasets.Dataset"
        raise DataError(f"cannot read records from {type(source).__name__}; give {valid}")
    if split != "train":
        logger.warning("split=%r has no effect on %s: only Hub names have splits", split, rows.name)
    return rows


def read_rows(path: Path) -> Rows:
    """Rows of a file (.json, .jsonl, .csv, .parquet, each also .gz), whatever their columns."""
    name = str(path)
    suffix = _suffix(path)
    if path.is_dir():
        raise DataError(f"{name}: is a folder; give a file ({', '.join(_SUFFIXES)}, each also .gz)")
    if not path.exists():
        raise DataError(f"{name}: no such file, and not the name of a Hub data set either (name or owner/name)")
    if suffix not in _SUFFIXES:
        raise DataError(f"{name}: unknown suffix {path.suffix!r}; valid: {', '.join(_SUFFIXES)}, each also .gz")
    data = _read_bytes(path)
    if suffix == ".parquet":
        return _parse_parquet(data, name)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{name}, line {line}: not UTF-8 text") from error
    return _PARSERS[suffix](text, name)


def _suffix(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return "".join(suffixes[-2:-1] if suffixes[-1:] == [".gz"] else suffixes[-1:])


def _read_bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.suffix.lower() == ".gz" else data
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _parse_json(text: str, name: str) -> Rows:
    if not text.lstrip().startswith("["):
        return _parse_json_lines(text, name)
    try:
        return Rows(parse_json(text), name)
    except json.JSONDecodeError as error:
        raise DataError(f"{name}, line {error.lineno}: not valid JSON: {error.msg}") from error
    except ValueError as error:
        raise DataError(f"{name}, row {_row_that_fails(text)}: {error}") from error


def _row_that_fails(text: str) -> int:
    """Which row of a list of JSON `parse_json` refuses; the list itself is well-formed as far as that."""
    at = text.index("[") + 1
    for row in itertools.count(1):
        at += len(text[at:]) - len(text[at:].lstrip(" \t\r\n,"))
        try:
            _, at = parse_json(text, at)
        except ValueError:
            return row
    raise AssertionError


def _parse_json_lines(text: str, name: str) -> Rows:
    records: list[Any] = []
    numbers: list[int] = []
    # Not splitlines(): JSON strings may hold U+2028 and its like unescaped.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            records.append(parse_json(line))
        except json.JSONDecodeError as error:
            problem = f"not valid JSON: {error.msg} (column {error.colno}); a file holds one list, or one row a line"
            raise DataError(f"{name}, line {number}: {problem}") from error
        except ValueError as error:
            raise DataError(f"{name}, line {number}: {error}") from error
        numbers.append(number)
    return Rows(records, name, "line", numbers)


def _parse_csv(text: str, name: str) -> Rows:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text), strict=True)
    records: list[dict[str, str]] = []
    header: list[str] | None = None
    try:
        with _long_fields(len(text)):
            for fields in reader:
                if not fields:
                    continue
                if header is None:
                    header = [field.strip() for field in fields]
                    _check_header(header, name)
                    continue
                if len(fields) != len(header):
                    problem = f"{len(fields)} fields, but the header has {len(header)}"
                    raise DataError(f"{name}, row {len(records) + 1}: {problem}")
                records.append(dict(zip(header, fields, strict=True)))
    except csv.Error as error:
        raise DataError(f"{name}, row {len(records) + 1}: not valid CSV: {error}") from error
    return Rows(records, name)


def _delimiter(text: str) -> str:
    """What parts the columns: a comma, or what spreadsheets write in its place where the header knows no comma."""
    header = text.lstrip("\r\n").partition("\n")[0]
    counts = {sign: header.count(sign) for sign in (";", "\t")}
    return "," if "," in header or not any(counts.values()) else max(counts, key=lambda sign: counts[sign])


def _check_header(header: list[str], name: str) -> None:
    twice = next((column for column in header if header.count(column) > 1), None)
    if twice is not None:
        raise DataError(f"{name}, header: the column {twice!r} is there twice; only one of them can be meant")


@contextmanager
def _long_fields(length: int) -> Iterator[None]:
    """Fields as long as the text may be; of itself `csv` takes 131,072 letters."""
    before = csv.field_size_limit(min(length + 1, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(before)


_PARSERS: Mapping[str, Callable[[str, str], Rows]] = {
    ".json": _parse_json,
    ".jsonl": _parse_json_lines,
    ".csv": _parse_csv,
}


def _parse_parquet(data: bytes, name: str) -> Rows:
    datasets = load_datasets()
    import pyarrow as pa  # noqa: PLC0415  (comes with datasets)
    import pyarrow.parquet  # noqa: PLC0415

    try:
        file = pyarrow.parquet.ParquetFile(pa.BufferReader(data))
        _check_header(file.schema_arrow.names, name)
        table = file.read()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{name}: not a parquet file, or not a whole one: {error}") from error
    try:
        return Rows(datasets.Dataset(datasets.table.InMemoryTable(table)), name)
    except ValueError:
        bare = table.replace_schema_metadata(None)
        return Rows(_table({column: partial(bare.select, [column]) for column in bare.column_names}, name), name)


def _is_hub_name(source: str | os.PathLike[str]) -> bool:
    """Whether a path that does not exist can be a Hub name; a file that is merely missing must be reported as such."""
    return isinstance(source, str) and bool(_HUB_NAME.fullmatch(source)) and _suffix(Path(source)) not in _SUFFIXES


def _read_hub(name: str, split: str) -> Rows:
    datasets = load_datasets()
    try:
        dataset = datasets.load_dataset(name, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"{name!r} is no local file, and the Hub gave no split {split!r} of it: {error}") from error
    return Rows(dataset, f"{name}[{split}]")


def _to_dataset(rows: Rows) -> datasets.Dataset:
    """A table of all columns that any row has.  Columns that no table can hold are left out, unless they are ours."""
    datasets = load_datasets()
    records: Sequence[Record] = rows.records
    names = dict.fromkeys(name for record in records for name in record)

    def column(name: str) -> Any:
        return datasets.Dataset.from_dict({str(name): [record.get(name) for record in records]}).data.table

    return _table({name: partial(column, name) for name in names}, rows.name)


def _table(columns: Mapping[str, Callable[[], Any]], where: str) -> datasets.Dataset:
    """A Dataset of columns, each made by its function; those that it cannot hold are left out, unless they are ours."""
    datasets = load_datasets()
    import pyarrow as pa  # noqa: PLC0415  (comes with datasets)

    kept: dict[str, Any] = {}
    left_out: list[str] = []
    for name, make in columns.items():
        try:
            table = make()
            datasets.Features.from_arrow_schema(table.schema)
            kept[name] = table.column(0)
        except (pa.ArrowException, OverflowError, RecursionError, ValueError) as error:
            if name in COLUMNS:
                raise DataError(
                    f"{where}: column {name!r} does not fit a table, as where its type differs between rows: {error}"
                ) from error
            left_out.append(name)
    if left_out:
        names = ", ".join(map(ascii, left_out))
        logger.warning("%s: left out columns that no table can hold (types that differ between rows): %s", where, names)
    return datasets.Dataset(datasets.table.InMemoryTable(pa.table(kept)))


def load_datasets() -> Any:
    """The package `datasets`, or the error that says how to get it."""
    try:
        import datasets  # noqa: PLC0415  (optional extra)
    except ImportError as error:
        raise MissingExtraError("datasets", extra="train") from error
    return datasets
