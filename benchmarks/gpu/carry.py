"""The rows that travel to the GPU: `python -m benchmarks.gpu.carry <data folder> <target>`, sampled as they are used.

Must not know: where they are used.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

from reftune.evaluation.data import task_rows
from reftune.evaluation.tasks import parse_tasks

from .quality import TEST_ROWS, TRAIN_ROWS


def main(data: str, target: str) -> None:
    for task in parse_tasks("commonsense"):
        for split, limit in (("train", TRAIN_ROWS), ("test", TEST_ROWS)):
            rows = task_rows(task, split, data_dir=data, limit=limit)
            lines = [json.dumps({"instruction": row["instruction"], "answer": row["answer"]}) for row in rows]
            file = Path(target) / task.sources[split].file
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))


if __name__ == "__main__":
    main(*sys.argv[1:])
