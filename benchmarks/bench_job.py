"""Whole jobs: ten examples (one middle layer, last token) with ours and with pyreft; and `reftune demo`.

The ten examples are of our own making, as long as those of pyreft's README: nine short answers and one of about 140
tokens, to which every batch of all ten is padded.  pyreft runs a few epochs, and its time is scaled to all of them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reftune.data import build_dataset
from reftune.models import load_tokenizer

from .methods import METHODS
from .model import model_folder
from .program import run_program
from .settings import Measurement, Settings
from .stats import Spread, ratios, rounded
from .tables import table
from .workers import WorkerError, environment

TITLE = "Whole jobs"
EXAMPLES = Path(__file__).parent / "ten_examples.jsonl"
ANSWERS = Path(__file__).parent / "demo_answers.json"
EPOCHS = 100
PEER_EPOCHS = 6
JOB = {"layer": 15, "rank": 4, "learning_rate": 4e-3, "batch_size": 10}
ROUNDS = 2
TEN, DEMO = "ten examples", "reftune demo"


def measure(settings: Settings, done: set[str]) -> Iterator[tuple[str, Measurement]]:
    if TEN not in done:
        settings.log(f"{TEN}, whole job")
        yield TEN, ten_examples(settings)
    if DEMO not in done:
        settings.log(DEMO)
        yield DEMO, demo(settings.threads)


def ten_examples(settings: Settings) -> Measurement:
    methods: dict[str, Any] = {"ours": {"runs": []}}
    if settings.peers:
        methods["pyreft"] = {"runs": []}
    for _ in range(settings.rounds(ROUNDS)):
        for name, entry in methods.items():
            if "error" in entry:
                continue
            try:
                entry["runs"].append(run(name, settings.threads))
            except WorkerError as error:
                entry["error"] = str(error)
            settings.log(f"  {name}: {entry.get('error') or entry['runs'][-1]}")
    return {"epochs": EPOCHS, **JOB, "methods": methods}


def run(name: str, threads: int) -> dict[str, Any]:
    """One run; of pyreft a short one, scaled."""
    folder = str(model_folder(METHODS[name]))
    with tempfile.TemporaryDirectory() as output:
        request = {**JOB, "model": folder, "output": str(Path(output) / "adapter")}
        if name == "ours":
            return run_program("job_ours", {**request, "data": str(EXAMPLES), "epochs": EPOCHS}, threads=threads)
        dataset = build_dataset(str(EXAMPLES), load_tokenizer(str(model_folder(METHODS["ours"]))))
        rows = [{"input_ids": list(r["input_ids"]), "prompt_length": r["prompt_length"]} for r in dataset]
        request.update(rows=rows, epochs=PEER_EPOCHS)
        return scaled(run_program("job_pyreft", request, threads=threads, environment_name="pyreft"))


def scaled(run: dict[str, Any]) -> dict[str, Any]:
    """All epochs, from the time of a step; one step is one epoch."""
    more = run["step_s"] * (EPOCHS - run["steps"])
    return {**run, "training_s": run["training_s"] + more, "whole_s": run["whole_s"] + more, "scaled": True}


def demo(threads: int) -> Measurement:
    """`reftune demo` as a user calls it, from the start of the process to its end."""
    model_folder(METHODS["ours"])  # its conversion is this model's download
    command = [str(Path(sys.executable).parent / "reftune"), "demo", "--json", "--output"]
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        done = subprocess.run(
            [*command, str(Path(folder) / "adapter")],
            env=environment(threads),
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
        seconds = time.perf_counter() - begin
    result = json.loads(done.stdout)
    answers = [sample["adapter"] for sample in result["samples"]]
    wanted = json.loads(ANSWERS.read_text(encoding="utf-8"))["answers"]
    right = sum(a == b for a, b in zip(answers, wanted, strict=True))
    kept = {name: result[name] for name in ("final_loss", "training_seconds", "seconds", "steps")}
    return {"whole_s": seconds, "answers": answers, "right": right, "of": len(wanted), **kept}


def slower(measurement: Measurement, what: str = "training_s") -> Spread:
    """pyreft's time ÷ ours, run by run."""
    runs = {name: [run[what] for run in entry["runs"]] for name, entry in measurement["methods"].items()}
    count = min(len(seconds) for seconds in runs.values())
    return ratios(runs["pyreft"][:count], runs["ours"][:count])


def tables(measurements: dict[str, Measurement]) -> Iterator[str]:
    if TEN in measurements:
        yield (
            f"Ten examples, {EPOCHS} epochs, batch {JOB['batch_size']}, rank {JOB['rank']}, layer {JOB['layer']}, last "
            f"prompt token. Whole is from the start of the process to the saved adapter. pyreft ran {PEER_EPOCHS} "
            "epochs; its times are scaled to all, and its loss is that after those few."
        )
        yield table(("method", "training, s", "whole, s", "trained", "last loss"), list(job_rows(measurements[TEN])))
    if DEMO in measurements:
        m = measurements[DEMO]
        yield (
            f"`reftune demo`: {m['whole_s']:.1f} s for the process, of which training {m['training_seconds']:.1f} s "
            f"({m['steps']} steps), final loss {m['final_loss']:.4f}; {m['right']} of {m['of']} answers right."
        )


def job_rows(measurement: Measurement) -> Iterator[list[str]]:
    for name, entry in measurement["methods"].items():
        runs = entry["runs"]
        if not runs:
            yield [name, f"failed: {entry.get('error', 'not measured')}", "", "", ""]
            continue
        times = [Spread.of([run[what] for run in runs]).text() for what in ("training_s", "whole_s")]
        yield [name, *times, f"{runs[-1]['parameters']:,}", rounded(runs[-1]["loss"])]
