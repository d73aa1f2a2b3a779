"""Servers and jobs that are killed at any moment: every job ends as it would have, and nothing is left over.

    python -m tests.serving.embedded.test_jobs_killed --kills 50 --seed 1

Must not know: how jobs are kept; what lies in the folder is looked at from outside.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serving.folders import BASE, save_text_base
from tests.serving.vllm.servers import wait_for

PATIENCE = 600.0
REFT = {"r": 2, "layers": [0, 1], "positions": "f1+l1"}
ROWS = [{"prompt": f"w1 w2 w{i}", "completion": f" w{i} w3"} for i in range(4, 12)]
BROKEN = [*ROWS[:2], {"prompt": "w1"}]
WHO = ("server", "job", "both")


@dataclass
class Killed:
    """A server that is begun anew whenever it was killed."""

    folder: Path
    base: Path
    threads: int = 1
    kills: dict[str, int] = field(default_factory=dict)
    process: Any = None
    url: str = ""

    def begin(self) -> None:
        port = 20_000 + (os.getpid() * 7 + len(self.kills) + sum(self.kills.values()) * 13) % 20_000
        self.url = f"http://127.0.0.1:{port}"
        words = [sys.executable, "-m", "reftune", "serve", str(self.base), "--backend", "transformers"]
        words += ["--served-model-name", BASE, "--port", str(port), "--fine-tuning", str(self.folder / "tuning")]
        words += ["--fine-tuning-device", "cpu", "--fine-tuning-threads", "1", "--uvicorn-log-level", "warning"]
        log = self.folder / "log"
        with log.open("ab") as out:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            self.process = subprocess.Popen(words, stdout=out, stderr=out, env=environment, start_new_session=True)
        wait_for(self.url, self.process, log)

    def kill(self, who: str) -> None:
        """SIGKILL to the server, to a job's process, or to both at once."""
        children = [int(pid) for pid in _children(self.process.pid)]
        victims = {"server": [self.process.pid], "job": children, "both": [self.process.pid, *children]}[who]
        for pid in victims:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.kills[who] = self.kills.get(who, 0) + bool(victims)
        if who != "job":
            self.process.wait()
            self.begin()

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(60)

    def ask(self, method: str, path: str, **more: Any) -> Any:
        reply = httpx.request(method, f"{self.url}/v1/{path}", timeout=60, **more)
        assert reply.status_code == 200, reply.text
        return reply.json()

    def upload(self, rows: list[dict[str, str]]) -> str:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        form: Any = {"files": {"file": ("rows.jsonl", text)}, "data": {"purpose": "fine-tune"}}
        return self.ask("POST", "files", **form)["id"]

    def create(self, rows: list[dict[str, str]], *, seed: int, epochs: int) -> str:
        options = {"n_epochs": epochs, "batch_size": 4, "learning_rate_multiplier": 5}
        method = {"type": "supervised", "supervised": {"hyperparameters": options}}
        body = {"model": BASE, "training_file": self.upload(rows), "method": method, "seed": seed, "reft": REFT}
        return self.ask("POST", "fine_tuning/jobs", json=body)["id"]

    def wait(self, id: str) -> dict[str, Any]:
        until = time.monotonic() + PATIENCE
        while (job := self.ask("GET", f"fine_tuning/jobs/{id}"))["status"] not in ("succeeded", "failed"):
            assert time.monotonic() < until, job
            time.sleep(0.1)
        return job


def _children(pid: int) -> list[str]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return found.stdout.split()


def weights(server: Killed, id: str) -> bytes:
    return (server.folder / "tuning" / "adapters" / id / "adapter_model.safetensors").read_bytes()


def torture(folder: Path, *, kills: int, seed: int, epochs: int = 60, between: float = 12.0) -> dict[str, Any]:
    """Kill at random moments while jobs of three seeds train; in the end compare with jobs that nobody killed."""
    chance = random.Random(seed)
    server = Killed(folder, save_text_base(folder / "base"))
    server.begin()
    try:
        wanted = {}
        for number in range(2):
            id = server.create(ROWS, seed=number, epochs=epochs)
            assert server.wait(id)["status"] == "succeeded"
            wanted[number] = weights(server, id)
        done = 0
        finished: list[tuple[int | None, str]] = []
        running: list[tuple[int | None, str]] = []
        while done < kills or running:
            while len(running) < 3 and done < kills:
                number = chance.choice([0, 1, None])
                rows = BROKEN if number is None else ROWS
                running.append((number, server.create(rows, seed=number or 0, epochs=epochs)))
            if done < kills:
                time.sleep(chance.uniform(0, between))
                server.kill(chance.choice(WHO))
                done += 1
            else:
                server.wait(running[0][1])
            statuses = {id: server.ask("GET", f"fine_tuning/jobs/{id}")["status"] for _, id in running}
            finished += [(n, id) for n, id in running if statuses[id] in ("succeeded", "failed")]
            running = [(n, id) for n, id in running if statuses[id] not in ("succeeded", "failed")]
        for number, id in finished:
            check(server, number, id, wanted)
        # what a server that was not killed would have
        server.kill("server")
        check_folder(server)
        return {"kills": server.kills, "jobs": len(finished), "trained": sum(n is not None for n, _ in finished)}
    finally:
        server.end()


def check(server: Killed, number: int | None, id: str, wanted: dict[int, bytes]) -> None:
    job = server.ask("GET", f"fine_tuning/jobs/{id}")
    if number is None:
        assert job["status"] == "failed" and "rows.jsonl, line 3" in job["error"]["message"], job
        return
    assert job["status"] == "succeeded", job
    assert weights(server, id) == wanted[number], f"{id} has another adapter than a job that was not killed"
    events = server.ask("GET", f"fine_tuning/jobs/{id}/events?limit=1000")["data"]
    steps = [event["data"]["step"] for event in reversed(events) if event["type"] == "metrics"]
    assert steps == list(range(1, job["progress"]["total_steps"] + 1))
    asked = {"model": job["fine_tuned_model"], "prompt": "w1 w2 w4", "max_tokens": 1}
    assert server.ask("POST", "completions", json=asked)["choices"]


def check_folder(server: Killed) -> None:
    """Nothing lies there but what a file, a job or an adapter of the API is."""
    tuning = server.folder / "tuning"
    files = server.ask("GET", "files")["data"]
    blobs = {path.name for path in (tuning / "files").iterdir()}
    adapters = {path.name for path in (tuning / "adapters").iterdir()}
    contents = {httpx.get(f"{server.url}/v1/files/{file['id']}/content").content for file in files}
    assert len(blobs) == len(contents) and not any(name.startswith(".") for name in blobs | adapters)
    assert adapters == {adapter["job"] for adapter in server.ask("GET", "reft/adapters")["data"]}
    assert not list((tuning / "jobs").iterdir())
    assert all(adapter["loaded"] for adapter in server.ask("GET", "reft/adapters")["data"])


@pytest.mark.slow
def test_a_few_kills_change_nothing(tmp_path: Path) -> None:
    found = torture(tmp_path, kills=3, seed=4, between=6.0)
    assert found["trained"] and sum(found["kills"].values()) >= 3


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--between", type=float, default=12.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        print(json.dumps(torture(Path(place), **vars(given))))
