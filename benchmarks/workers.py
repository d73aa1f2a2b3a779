"""Workers from the driver's side: started, asked one at a time, and their steps measured in turn.

A worker that fails does not end the run: its row says why.

Must not know: cases, targets.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from .environments import ROOT, python_of
from .methods import Method

# the variable that names the file descriptor of the replies, as peers/protocol.py reads it
REPLIES = "BENCHMARK_REPLIES"
# float32 logits of two versions of transformers
LOGITS_TOLERANCE = 1e-4


class WorkerError(RuntimeError):
    """A worker died; the message is the end of what it wrote."""


class Worker:
    """One process that holds a model."""

    def __init__(self, method: Method, *, threads: int) -> None:
        self.method = method
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - until close()
        command = [python_of(method.environment), "-m", f"benchmarks.peers.{method.module}", *method.arguments]
        read, write = os.pipe()
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**environment(threads), REPLIES: str(write)},
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            pass_fds=[write],
            text=True,
        )
        # only the worker's end stays open, so that its death ends the pipe
        os.close(write)
        self._replies = os.fdopen(read, encoding="utf-8")

    def send(self, do: str, **fields: Any) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **fields}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise WorkerError(self._last_words()) from error

    def receive(self) -> dict[str, Any]:
        line = self._replies.readline()
        if not line:
            raise WorkerError(self._last_words())
        return json.loads(line)

    def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        self.send(do, **fields)
        return self.receive()

    def close(self) -> None:
        """Ask it to quit; end it if it does not."""
        try:
            self.send("quit")
            self._process.wait(timeout=60)
        except (WorkerError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            # what could not be sent is tried again here
            self._process.stdin.close()
        self._replies.close()
        self._log.close()

    def _last_words(self) -> str:
        # its pipe is closed: if it still lives, it is of no use any more
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=10)
        self._log.seek(0)
        lines = [line.strip() for line in self._log if line.strip()]
        return lines[-1][:300] if lines else f"ended with {self._process.returncode} and said nothing"


def environment(threads: int) -> dict[str, str]:
    """What every measured process is started with."""
    given = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**os.environ, **given, "PYTHONWARNINGS": "ignore"}


@contextmanager
def started(
    methods: Sequence[Method], requests: Callable[[Method], dict[str, Any]], *, threads: int, log: Callable[[str], None]
) -> Iterator[tuple[dict[str, Worker], dict[str, dict[str, Any]]]]:
    """Workers with their models loaded, by name, and a row for each method: what it said, or its error.

    Loading is done by all at once, all else by one at a time.
    """
    workers = {method.name: Worker(method, threads=threads) for method in methods}
    rows: dict[str, dict[str, Any]] = {name: {} for name in workers}
    alive = dict(workers)
    try:
        for name, worker in workers.items():
            attempt(alive, rows, name, lambda worker=worker: worker.send("load", **requests(worker.method)))
        for name in list(alive):
            attempt(alive, rows, name, lambda name=name: rows[name].update(alive[name].receive()))
        compare_fingerprints(rows)
        log(f"  loaded: {', '.join(alive)}")
        for name in list(alive):
            attempt(alive, rows, name, lambda name=name: rows[name].update(start=alive[name].ask("start")["seconds"]))
        for name, row in rows.items():
            if "error" in row:
                log(f"  {name}: failed: {row['error']}")
        yield alive, rows
    finally:
        for worker in workers.values():
            worker.close()


def attempt(
    alive: dict[str, Worker], rows: dict[str, dict[str, Any]], name: str, action: Callable[[], Any]
) -> Any | None:
    """Do something with a worker; if it dies, its row gets the error and it takes part no more."""
    try:
        return action()
    except WorkerError as error:
        rows[name]["error"] = str(error)
        alive.pop(name, None)
        return None


def compare_fingerprints(rows: dict[str, dict[str, Any]]) -> None:
    """All workers must hold the same base model; takes the logits out of the rows.

    Raises:
        RuntimeError: they do not; one environment may have read the configuration otherwise.
    """
    shown = {name: row.pop("fingerprint") for name, row in rows.items() if "fingerprint" in row}
    if not shown:
        return
    first, reference = next(iter(shown.items()))
    for name, logits in shown.items():
        distance = max(abs(a - b) for a, b in zip(logits, reference, strict=True))
        rows[name]["logits_distance"] = distance
        if not distance <= LOGITS_TOLERANCE:
            raise RuntimeError(f"the base models of {first} and {name} differ: logits by up to {distance:.2g}")


def rounds(
    alive: dict[str, Worker],
    rows: dict[str, dict[str, Any]],
    count: int,
    *,
    log: Callable[[str], None],
    steps: dict[str, int],
) -> None:
    """`count` times, a step of each worker in turn (or as many as `steps` has for it), back and forth.

    Adds to each row `seconds` and `tokens`, one number a round, `losses`, and its memory at the end.
    """
    for index in range(count):
        names = list(alive)
        for name in names if index % 2 == 0 else reversed(names):
            done = attempt(
                alive, rows, name, lambda name=name: [alive[name].ask("step") for _ in range(steps.get(name, 1))]
            )
            if done is None:
                log(f"  {name}: failed: {rows[name]['error']}")
                continue
            row = rows[name]
            row.setdefault("seconds", []).append(sum(reply["seconds"] for reply in done))
            row.setdefault("tokens", []).append(round(sum(reply["tokens"] for reply in done)))
            row.setdefault("losses", []).extend(round(reply["loss"], 4) for reply in done)
        log("  " + ", ".join(f"{name} {rows[name]['seconds'][-1]:.2f}" for name in alive))
    for name in list(alive):
        attempt(alive, rows, name, lambda name=name: rows[name].update(alive[name].ask("memory")))


def stderr(message: str) -> None:
    """The log of a run."""
    print(message, file=sys.stderr, flush=True)
