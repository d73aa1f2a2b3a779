"""The rows that travel to the GPU: `python -m benchmarks.gpu.carry <data folder> <target>`, sampled as they are used.

Must not know: where they are used.
"""

from __future__ import annotations

import gzip
import json
import shutil
import sys
from pathlib import Path

from reftune.evaluation.data import task_rows
from reftune.evaluation.tasks import parse_tasks
from reftune.models import load_base

from .quality import MODEL, TEST_ROWS, TRAIN_ROWS
from .recipes import LONG, TESTED

LONG_TOKENS = 100


def main(data: str, target: str) -> None:
    for task in parse_tasks("commonsense"):
        for split, limit in (("train", TRAIN_ROWS), ("test", TEST_ROWS)):
            rows = task_rows(task, split, data_dir=data, limit=limit)
            lines = [json.dumps({"instruction": row["instruction"], "answer": row["answer"]}) for row in rows]
            file = Path(target) / task.sources[split].file
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))
    for task in parse_tasks(",".join(TESTED)):
        for source in task.sources.values():
            file = Path(target) / source.file
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(data) / source.file, file)
    long_prompts(data, Path(target))


def long_prompts(data: str, target: Path) -> None:
    """The rows of QNLI with prompts of more than 100 tokens, as records."""
    (task,) = parse_tasks("qnli")
    _, tokenizer = load_base(MODEL)
    for split in ("train", "test"):
        records = [task.record(row) for row in task_rows(task, split, data_dir=data)]
        kept = [record for record in records if len(tokenizer(record["prompt"])["input_ids"]) > LONG_TOKENS]
        lines = [json.dumps({name: record[name] for name in ("prompt", "completion")}) for record in kept]
        (target / f"{LONG}.{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
