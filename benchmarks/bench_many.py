"""Adapters trained together by `train_many` beside the same ones trained one by one: adapters per CPU hour, memory.

    python benchmarks/bench_many.py --adapters 1,4,16 --positions l7 --tokens 100 --output many-l7.json

Prompts of random tokens and answers of three, ranks and learning rates of each adapter its own.  One by one is
`train_run` in this process, which loads the base for each.  `--alone` is how many are timed so: they take the same.
Each measurement is in a process of its own, so that its memory can be told.

Must not know: searches.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from reftune.models import load_tokenizer
from reftune.reporting.machine import hardware, versions
from reftune.training import RunConfig, train_many, train_run

ANSWER = 3


def rows_of(model: str, rows: int, tokens: int) -> list[dict[str, Any]]:
    tokenizer = load_tokenizer(model)
    rng = random.Random(0)
    # whole words, so that as many tokens come back
    found = [str(tokenizer.decode([i])) for i in range(1000, 4000)]
    words = [word for word in found if word.strip().isalpha() and word[0] == " "]

    def text(count: int) -> str:
        return "".join(rng.choice(words) for _ in range(count))

    return [{"prompt": text(tokens).strip(), "completion": text(ANSWER)} for _ in range(rows)]


def runs_of(given: argparse.Namespace, count: int, folder: Path) -> list[RunConfig]:
    data = rows_of(given.model, given.rows, given.tokens)
    training = {"num_train_epochs": given.epochs, "per_device_train_batch_size": 16, "save_strategy": "no"}
    return [
        RunConfig(
            model=given.model,
            data=data,
            output=str(folder / str(i)),
            seed=i,
            dtype="float32",
            reft={"positions": given.positions, "layers": given.layers, "r": 2 ** (i % 4)},
            training={**training, "learning_rate": 1e-3 * (1 + i % 3), "disable_tqdm": True},
        )
        for i in range(count)
    ]


def measure(given: argparse.Namespace, count: int, together: bool) -> dict[str, Any]:
    """CPU seconds an adapter, and the most memory of the process."""
    with tempfile.TemporaryDirectory() as folder:
        runs = runs_of(given, count, Path(folder))
        start = time.process_time()
        losses = [one.final_loss for one in (train_many(runs) if together else map(train_run, runs))]
        seconds = time.process_time() - start
    return {
        "adapters": count,
        "together": together,
        "cpu_seconds_each": seconds / count,
        "adapters_per_cpu_hour": 3600 * count / seconds,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "losses": losses,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--adapters", default="1,4,16")
    parser.add_argument("--alone", type=int, default=1)
    parser.add_argument("--positions", default="l7")
    parser.add_argument("--layers", default="all")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    if given.one:
        count, together = given.one.split(",")
        print(json.dumps(measure(given, int(count), together == "together")))
        return
    todo = [f"{given.alone},alone", *(f"{count},together" for count in given.adapters.split(","))]
    found = []
    for one in todo:
        command = [sys.executable, __file__, *sys.argv[1:], "--one", one]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
        times = found[0]["cpu_seconds_each"] / found[-1]["cpu_seconds_each"]
        print(f"{one}: {found[-1]['cpu_seconds_each']:.1f} CPU s an adapter, {times:.2f} × one by one", flush=True)
    if given.output:
        values = {name: value for name, value in vars(given).items() if name not in ("output", "one")}
        result = {**values, "hardware": hardware(), "versions": versions(), "measured": found}
        given.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
