"""Runs one of `benchmarks.programs` in an environment and gives back its result.

Must not know: what the programs do.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from .environments import OURS, ROOT, python_of
from .workers import WorkerError, environment


def run_program(name: str, request: dict[str, Any], *, threads: int, environment_name: str = OURS) -> dict[str, Any]:
    """Its result, and under `whole_s` how long the process took, from its start to its end.

    Raises:
        WorkerError: it failed; with the end of what it wrote.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder) / "request.json", Path(folder) / "result.json"
        given.write_text(json.dumps(request))
        command = [python_of(environment_name), "-m", f"benchmarks.programs.{name}", str(given), str(made)]
        begin = time.perf_counter()
        done = subprocess.run(
            command, cwd=ROOT, env=environment(threads), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        seconds = time.perf_counter() - begin
        if done.returncode or not made.is_file():
            lines = [line for line in done.stdout.splitlines() if line.strip()]
            raise WorkerError(lines[-1][:300] if lines else f"ended with {done.returncode} and said nothing")
        return {**json.loads(made.read_text()), "whole_s": seconds}
