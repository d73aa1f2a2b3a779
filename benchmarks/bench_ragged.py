"""Rows as they are: 64 of each of the eight commonsense training sets, in useful tokens a second.

Useful are the tokens of the rows; padding is not.  Ours runs whole epochs in the order that its Trainer makes.  The
others get batches of the same rows in one random order, padded to their longest row as their collators do; every n-th
batch, where a whole epoch would take too long.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reftune.data import build_dataset, load_records
from reftune.models import load_tokenizer

from .cases import ALL, SEED, Row, StepCase, request, write_rows
from .interleave import interleaved
from .methods import METHODS
from .model import model_folder
from .settings import Measurement, Settings
from .stats import ratios, rounded
from .tables import table

TITLE = "Ragged rows"
SETS = ("boolq", "piqa", "social_i_qa", "hellaswag", "winogrande", "ARC-Easy", "ARC-Challenge", "openbookqa")
ROWS_A_SET = 64
BATCH = 16
RANK = 8
CASE = StepCase("all layers, f7+l7, r 8", ALL.layers, ALL.first, ALL.last, rank=RANK)
NAMES = ("ours", "ours, packing", "pyreft", "AdapterHub", "LoRA all linear")
ROUNDS = 4
KEY = "commonsense"


def rows_of(data_dir: Path, tokenizer: Any, per_set: int = ROWS_A_SET) -> list[Row]:
    """The same rows in the same order for whoever asks; rows of all sets are mixed."""
    generator = random.Random(SEED)
    rows: list[Row] = []
    for name in SETS:
        records = load_records(str(data_dir / "commonsense" / f"{name}.train.jsonl.gz"))
        chosen = records.select(generator.sample(range(len(records)), per_set))
        dataset = build_dataset(chosen, tokenizer)
        rows.extend((list(row["input_ids"]), row["prompt_length"]) for row in dataset)
    generator.shuffle(rows)
    return rows


def sampled_batches(rows: list[Row], fraction: float, *, rounds: int, size: int = BATCH) -> list[Row]:
    """Rows of every n-th batch, so many that each round has the same number of batches."""
    batches = [rows[i : i + size] for i in range(0, len(rows), size)]
    count = max(1, round(len(batches) * fraction / rounds)) * rounds
    count = min(count, len(batches))
    chosen = [batches[i * len(batches) // count] for i in range(count)]
    return [row for batch in chosen for row in batch]


def measure(settings: Settings, done: set[str]) -> Iterator[tuple[str, Measurement]]:
    if KEY in done:
        return
    settings.log("ragged rows")
    rows = rows_of(settings.data_dir, load_tokenizer(str(model_folder(METHODS["ours"]))))
    some = sampled_batches(rows, settings.fraction, rounds=ROUNDS)
    with tempfile.TemporaryDirectory() as folder:
        files = {
            True: write_rows(rows, Path(folder) / "all.json"),
            False: write_rows(some, Path(folder) / "some.json"),
        }
        jobs, steps = [], {}
        for method in settings.methods(NAMES):
            whole = method.module == "ours"
            model = {"folder": str(model_folder(method))}
            jobs.append((method, request(CASE, files[whole], model, batch_size=BATCH)))
            steps[method.name] = len(rows if whole else some) // BATCH // ROUNDS
        measured = interleaved(settings, jobs, ROUNDS, steps=steps)
    for method, _ in jobs:
        measured[method.name]["rows"] = len(rows if method.module == "ours" else some)
    yield KEY, {"rows": len(rows), "tokens": sum(len(ids) for ids, _ in rows), "batch": BATCH, "methods": measured}


def speed(row: dict[str, Any]) -> float:
    """Useful tokens a second, over all rounds."""
    return sum(row["tokens"]) / sum(row["seconds"])


def is_measured(row: dict[str, Any]) -> bool:
    return "error" not in row and bool(row.get("seconds"))


def tables(measurements: dict[str, Measurement]) -> Iterator[str]:
    for measurement in measurements.values():
        yield (
            f"{measurement['rows']} rows, {measurement['tokens']:,} tokens, batches of {measurement['batch']}, "
            f"{CASE.name}. `rows` are those that were run: fewer than all are every n-th batch of one random order. "
            "The speed of ours ÷ that of a method is over all of its rounds, and in brackets of single rounds, whose "
            "rows are not the same."
        )
        ours = measurement["methods"]["ours"]
        rows = []
        for name, row in measurement["methods"].items():
            if not is_measured(row):
                rows.append([name, f"failed: {row.get('error', 'not measured')}", *[""] * 3])
                continue
            relative = "–"
            if is_measured(ours):
                single = ratios(speeds(ours), speeds(row))
                relative = f"{rounded(speed(ours) / speed(row))} ({rounded(single.low)}–{rounded(single.high)})"
            rows.append([name, rounded(speed(row)), relative, f"{row['peak_mb']:,.0f}", str(row["rows"])])
        yield table(("method", "useful tokens/s", "ours ÷ this", "peak MB", "rows"), rows)


def speeds(row: dict[str, Any]) -> list[float]:
    return [tokens / seconds for tokens, seconds in zip(row["tokens"], row["seconds"], strict=True)]
