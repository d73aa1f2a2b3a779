"""A small search: a tiny model in a folder, records for it, and a search in a process that can be killed.

Must not know: what is tested with it.
"""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import torch

from reftune.search.search import search
from reftune.search.settings import SearchConfig
from tests.training.text_models import WORDS, save_base, write_jsonl

ROWS = 44
# one place, so that little is computed
SPACE = {"layers": ["all"], "positions": ["l1"], "r": [1, 2], "dropout": [0]}


def folder_with_rows(folder: Path, *, rows: int = ROWS) -> Path:
    """`base` and `train.jsonl`: the last word of each prompt says which of two words is the answer."""
    save_base(folder / "base")
    records = []
    for i in range(rows):
        words = " ".join(WORDS[2 + (7 * i + j) % 40] for j in range(4 + i % 3))
        records.append({"prompt": f"w{i % 40 + 2} {words} w{i % 2}", "completion": f" w{50 + i % 2}"})
    write_jsonl(folder / "train.jsonl", records)
    return folder


def config_of(folder: Path, **changed: Any) -> SearchConfig:
    """A search of a few seconds."""
    values = {
        "model": str(folder / "base"),
        "task": str(folder / "train.jsonl"),
        "budget": "7 trials",
        "epochs": 1,
        "batch_size": 8,
        "finalists": 0,
        "space": SPACE,
        **changed,
    }
    return SearchConfig.from_mapping(values)


def start(folder: Path, output: Path, log: Path, **changed: Any) -> Any:
    """The search in a process, forked from one that has imported all that takes long."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=_search, args=(str(folder), str(output), str(log), changed))
    process.start()
    return process


def _search(folder: str, output: str, log: str, changed: dict[str, Any]) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    torch.set_num_threads(1)
    search(config_of(Path(folder), **changed), Path(output))
