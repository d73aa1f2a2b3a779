"""Sources to checked rows: every format, and errors that name file and row."""

from __future__ import annotations

import csv
import gzip
import io
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from reftune.data import load_records
from reftune.errors import DataError, MissingExtraError

ROWS = [
    {"instruction": "say é\u2028hello", "input": "", "output": 'yes,\n"no"'},
    {"instruction": "again", "input": "x", "output": "no"},
    {"instruction": "more", "input": "", "output": "never"},
]


def _json(rows: list[dict[str, Any]]) -> bytes:
    return json.dumps(rows, indent=1).encode()


def _json_lines(rows: list[dict[str, Any]]) -> bytes:
    return "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()


def _csv(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return b"\xef\xbb\xbf" + text.getvalue().encode()


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    data = io.BytesIO()
    datasets.Dataset.from_list(rows).to_parquet(data)
    return data.getvalue()


WRITERS = {"rows.json": _json, "lines.json": _json_lines, "r.jsonl": _json_lines, "r.csv": _csv, "r.PARQUET": _parquet}


def _write(path: Path, data: bytes | str) -> Path:
    data = data.encode() if isinstance(data, str) else data
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize(("name", "writer"), WRITERS.items())
def test_every_format_gives_the_same_rows(
    tmp_path: Path, name: str, end: str, writer: Callable[[list[dict[str, Any]]], bytes]
) -> None:
    path = _write(tmp_path / (name + end), writer(ROWS))
    for source in (path, str(path)):
        loaded = load_records(source)
        assert isinstance(loaded, datasets.Dataset)
        assert loaded.to_list() == ROWS


def test_lists_and_datasets() -> None:
    assert load_records(ROWS).to_list() == ROWS
    assert load_records(datasets.Dataset.from_list(ROWS).with_format("numpy")).to_list() == ROWS


def test_rows_of_different_kinds_and_columns() -> None:
    rows = [{"prompt": "a", "completion": "b"}, {"instruction": "a", "output": "b", "id": 1}]
    loaded = load_records(rows)
    assert set(loaded.column_names) == {"prompt", "completion", "instruction", "output", "id"}
    assert loaded[1] == {"prompt": None, "completion": None, "instruction": "a", "output": "b", "id": 1}


def test_foreign_column_of_mixed_types_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"prompt": "a", "completion": "b", "answer": 5}, {"prompt": "a", "completion": "b", "answer": "five"}]
    with caplog.at_level(logging.WARNING, logger="reftune"):
        assert load_records(rows).column_names == ["prompt", "completion"]
    assert "answer" in caplog.text


def test_own_column_of_mixed_types_is_refused() -> None:
    user, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    with pytest.raises(DataError, match=r"column 'prompt' .*type differs between rows"):
        load_records([{"prompt": "a", "completion": "b"}, {"prompt": [user], "completion": [answer]}])


GOOD = '{"prompt": "a", "completion": "b"}'


@pytest.mark.parametrize(
    ("name", "text", "needle"),
    [
        ("r.jsonl", f"{GOOD}\n\n{{broken\n", "r.jsonl, line 3: not valid JSON"),
        ("r.jsonl.gz", f"{GOOD}\n[1]\n", "r.jsonl.gz, line 2: a row must be an object"),
        ("r.jsonl", f'{GOOD}\n\n{{"prompt": "a", "completion": " "}}', "r.jsonl, line 3: 'completion' is empty"),
        ("r.jsonl", f'{GOOD}\n{{"prompt": "a"}}', "r.jsonl, line 2: 'completion' is missing"),
        ("r.jsonl", f'{GOOD}\n{{"prompt": "", "completion": "b"}}', "r.jsonl, line 2: 'prompt' is empty"),
        ("r.json", f'[{GOOD}, {{"prompt": "a", "completion": null}}]', "r.json, row 2: 'completion' is missing"),
        ("r.json", f"[{GOOD},\n 5]", "r.json, row 2: a row must be an object of columns, not int 5"),
        ("r.json", f"[{GOOD},\n {{]", "r.json, line 2: not valid JSON"),
        ("r.json", f"{GOOD}\nnonsense", "r.json, line 2: not valid JSON"),
        ("r.csv", 'prompt,completion\n"a\nb",b\na,\n', "r.csv, row 2: 'completion' is empty"),
        ("r.csv", "prompt,completion\na,b\na\n", "r.csv, row 2: 1 fields, but the header has 2"),
        ("r.csv", 'prompt,completion\na,b\na,"b\n', "r.csv, row 2: not valid CSV"),
        ("r.csv", "text\nb\n", "r.csv, row 1: columns found: text"),
        ("r.csv", "prompt,completion,prompt\na,b,c\n", "r.csv, header: the column 'prompt' is there twice"),
        ("r.jsonl", f'{GOOD}\n{{"x": {"[" * 200_000}', "r.jsonl, line 2: lists or objects are nested too deeply"),
        ("r.json", f'[{GOOD},\n{GOOD}, {{"x": {"[" * 200_000}', "r.json, row 3: lists or objects are nested too"),
        ("r.jsonl", f'{GOOD}\n{{"x": {"9" * 5000}}}', "r.jsonl, line 2: a number has more digits than can be read"),
        ("r.json", f'[{GOOD}, {{"x": {"9" * 5000}}}]', "r.json, row 2: a number has more digits than can be read"),
        ("r.jsonl", f'{GOOD}\n{{"prompt": "a", "prompt": "b"}}', "r.jsonl, line 2: the key 'prompt' is there twice"),
        ("r.json", f'[{GOOD}, {{"prompt": "a", "prompt": "b"}}]', "r.json, row 2: the key 'prompt' is there twice"),
        ("r.jsonl", f'{GOOD}\n{{"prompt": NaN, "completion": "b"}}', "r.jsonl, line 2: 'prompt' must be a string, not"),
        ("r.jsonl", f'{GOOD}\n{{"prompt": "a\0", "completion": "b"}}', "r.jsonl, line 2: not valid JSON"),
        ("r.jsonl", f'{GOOD}\n{{"prompt": "\\ud83d", "completion": "b"}}', "r.jsonl, line 2: 'prompt' has half a"),
        ("r.json", "", "r.json: no rows"),
        ("r.json", "[]", "r.json: no rows"),
        ("r.jsonl", "\n\n", "r.jsonl: no rows"),
        ("r.csv", "prompt,completion\n", "r.csv: no rows"),
        ("r.parquet", "nonsense", "r.parquet: not a parquet file"),
        ("r.txt", GOOD, "r.txt: unknown suffix '.txt'; valid: .json, .jsonl, .csv, .parquet"),
        ("r", GOOD, "unknown suffix ''"),
    ],
)
def test_error_names_file_and_row(tmp_path: Path, name: str, text: str, needle: str) -> None:
    path = _write(tmp_path / name, text)
    with pytest.raises(DataError) as error:
        load_records(path)
    assert needle in str(error.value)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("r.csv", f'prompt,completion\n"{"a b, " * 40_000}",b\n'),
        ("r.csv", "\ufeffprompt,completion\na\0,1\n"),
        ("r.jsonl", f"\ufeff{GOOD}"),
        ("r.json", f"\ufeff[{GOOD}]"),
        ("r.jsonl", '{"prompt": "a\\u0000", "completion": "b", "score": NaN}'),
        ("r.jsonl", f'{{"prompt": "a", "completion": "b", "x": {"[" * 900}{"]" * 900}}}'),
        ("r.jsonl", '{"prompt": "a", "completion": "b", "\\ud83d": 1, "x": 123456789012345678901234567890}'),
    ],
)
def test_what_is_harmless_works(tmp_path: Path, name: str, text: str) -> None:
    limit = csv.field_size_limit()
    loaded = load_records(_write(tmp_path / name, text))
    assert len(loaded) == 1 and set(loaded.column_names) >= {"prompt", "completion"}
    assert csv.field_size_limit() == limit


def test_all_unusable_rows_are_counted() -> None:
    bad = {"prompt": "a", "completion": ""}
    rows = [{"prompt": "a", "completion": "b"}, *[bad] * 8]
    with pytest.raises(
        DataError,
        match=r"row 2: 'completion' is empty: ''; fill it in, or take the row out "
        r"\(7 more unusable, row 3, 4, 5, 6, 7, \.\.\.\)",
    ):
        load_records(rows)
    with pytest.raises(DataError, match=r"\(1 more unusable, row 3\)$"):
        load_records(rows[:3])


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 2: not UTF-8"):
        load_records(_write(tmp_path / "r.jsonl", GOOD.encode() + b"\n\xff\xfe"))
    (tmp_path / "r.jsonl.gz").write_bytes(b"not gzip")
    with pytest.raises(DataError, match="cannot be read"):
        load_records(tmp_path / "r.jsonl.gz")
    (tmp_path / "short.jsonl.gz").write_bytes(gzip.compress(GOOD.encode())[:-9])
    with pytest.raises(DataError, match="cannot be read"):
        load_records(tmp_path / "short.jsonl.gz")


def test_parquet_that_is_cut_or_odd(tmp_path: Path) -> None:
    whole = _parquet(ROWS)
    for data in (whole[:-50], whole[:100], b"", whole[:20] + b"\xff" * 40 + whole[60:]):
        with pytest.raises(DataError, match=r"r\.parquet: not a parquet file, or not a whole one"):
            load_records(_write(tmp_path / "r.parquet", data))
    columns = {"prompt": pa.array(["a"]), "completion": pa.array(["b"])}
    twice = pa.Table.from_arrays([*columns.values(), pa.array(["c"])], [*columns, "prompt"])
    pyarrow.parquet.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(DataError, match=r"twice\.parquet, header: the column 'prompt' is there twice"):
        load_records(tmp_path / "twice.parquet")
    odd = pa.table({**columns, "map": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64()))})
    pyarrow.parquet.write_table(odd, tmp_path / "odd.parquet")
    assert load_records(tmp_path / "odd.parquet").to_list() == [{"prompt": "a", "completion": "b"}]


def test_parquet_row(tmp_path: Path) -> None:
    path = _write(tmp_path / "r.parquet", _parquet([*ROWS, {"instruction": "a", "input": "", "output": ""}]))
    with pytest.raises(DataError, match=r"r\.parquet, row 4: 'output' is empty"):
        load_records(path)


@pytest.mark.parametrize(
    "source", ["nowhere.jsonl", "a/b/nowhere", "./nowhere", "owner/nowhere.csv.gz", Path("owner/x")]
)
def test_missing_file(source: str | Path) -> None:
    with pytest.raises(DataError, match="no such file") as error:
        load_records(source)
    assert str(Path(source)) in str(error.value)


def test_folder_and_foreign_types(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder"):
        load_records(tmp_path)
    with pytest.raises(DataError, match="cannot read records from dict"):
        load_records({"prompt": ["a"]})  # type: ignore[arg-type]


def test_hub_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def load_dataset(name: str, *, split: str) -> datasets.Dataset:
        asked.append((name, split))
        if name == "owner/none":
            raise datasets.exceptions.DatasetNotFoundError("no such data set")
        return datasets.Dataset.from_list([*ROWS, {"instruction": "a", "input": "", "output": split[:-4]}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(load_records("owner/name", split="validation")) == 4
    assert asked == [("owner/name", "validation")]
    with pytest.raises(DataError, match=r"owner/name\[test\], row 4: 'output' is empty"):
        load_records("owner/name", split="test")
    with pytest.raises(DataError, match="'owner/none' is no local file, and the Hub gave no split 'train'"):
        load_records("owner/none")


def test_split_without_effect_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="reftune"):
        load_records(ROWS, split="test")
    assert "split='test' has no effect" in caplog.text


def test_prompts_to_generate_from() -> None:
    assert load_records([{"prompt": "a"}], need_response=False).to_list() == [{"prompt": "a"}]


def test_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"reftune\[train\]"):
        load_records(ROWS)
