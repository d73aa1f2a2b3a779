"""Ten minutes of mixed load: adapters come and go, clients hang up, requests are malformed; every token is checked.

`REFTUNE_SOAK_SECONDS` makes it shorter or longer.
"""

from __future__ import annotations

import os
import random
import shutil
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.serving.vllm.engines import prepare
from tests.serving.vllm.servers import BASE, loading_from, served, text_world
from tests.serving.vllm.worlds import NEW, World, mixed_requests

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

SECONDS = float(os.environ.get("REFTUNE_SOAK_SECONDS", "600"))
MALFORMED = (b"", b"{", b"[]", b'{"model": 7}', b'{"model": "tiny", "prompt": {"a": 1}}', b"\xff\xfe")


class Load:
    """Threads that ask a server until the time is over, and what went wrong."""

    def __init__(self, world: World, url: str, seconds: float) -> None:
        import httpx

        self.world, self.url = world, url
        self.http = httpx.Client(base_url=f"{url}/v1", timeout=60)
        self.end = time.monotonic() + seconds
        self.done: Counter[str] = Counter()
        self.wrong: list[Any] = []
        self.fixed = world.names[:12]
        requests = mixed_requests(self.fixed, count=60, seed=9)
        self.requests = [(tuple(t % 40 + 4 for t in prompt), name) for prompt, name in requests]
        self.wanted = world.answers(self.requests)
        # two adapters that take turns under one name
        self.pair = world.names[12:14]
        self.prompt = tuple(range(5, 45))
        self.either = world.answers([(self.prompt, name) for name in self.pair])

    def run(self) -> None:
        threads = [threading.Thread(target=self.repeat, args=(work,)) for work in self.works()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def works(self) -> list[Any]:
        return [self.ask, self.ask, self.ask, self.hang_up, self.malform, self.move, self.ask_moving]

    def repeat(self, work: Any) -> None:
        rng = random.Random(work.__name__)
        while time.monotonic() < self.end and len(self.wrong) < 10:
            try:
                work(rng)
            except Exception as error:  # noqa: BLE001 — whatever it is, it is to be told
                self.wrong.append((work.__name__, repr(error)))
            self.done[work.__name__] += 1

    def post(self, route: str, **body: Any) -> Any:
        return self.http.post(route, json=body)

    def complete(self, model: str, prompt: tuple[int, ...], **more: Any) -> Any:
        body = {"prompt": list(prompt), "max_tokens": NEW, "temperature": 0, "ignore_eos": True}
        return self.post("completions", model=model, return_token_ids=True, **body, **more)

    def ask(self, rng: random.Random) -> None:
        i = rng.randrange(len(self.requests))
        prompt, name = self.requests[i]
        answer = self.complete(name or BASE, prompt).json()
        if answer["choices"][0]["token_ids"] != self.wanted[i]:
            self.wrong.append((name, len(prompt)))

    def hang_up(self, rng: random.Random) -> None:
        prompt, name = rng.choice(self.requests)
        body = {"model": name or BASE, "prompt": list(prompt), "max_tokens": 100, "stream": True, "ignore_eos": True}
        with self.http.stream("POST", "completions", json=body) as response:
            for _ in zip(range(rng.randrange(4)), response.iter_lines(), strict=False):
                pass

    def malform(self, rng: random.Random) -> None:
        response = self.http.post("completions", content=rng.choice(MALFORMED))
        if not 400 <= response.status_code < 500:
            self.wrong.append(("malformed", response.status_code))

    def move(self, rng: random.Random) -> None:
        """Load, replace and unload, good ones and bad ones."""
        folder = self.world.folder / "moving"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.world.path(rng.choice(self.pair)), folder)
        if rng.random() < 0.2:
            (folder / "adapter_model.safetensors").write_bytes(b"nothing")
            if self.post("load_reft_adapter", reft_name="moving", reft_path=str(folder)).status_code != 400:
                self.wrong.append(("a broken adapter was loaded",))
            return
        self.post("load_reft_adapter", reft_name="moving", reft_path=str(folder), load_inplace=True).raise_for_status()
        if rng.random() < 0.3:
            self.post("unload_reft_adapter", reft_name="moving").raise_for_status()
        time.sleep(0.05)

    def ask_moving(self, rng: random.Random) -> None:
        response = self.complete("moving", self.prompt)
        if response.status_code != 404 and response.json()["choices"][0]["token_ids"] not in self.either:
            self.wrong.append(("moving", response.text[:200]))


def resident_mb() -> float:
    """Of all processes below this one."""
    parents, sizes = {}, {}
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            values = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        except OSError:
            continue
        pid = int(values["Pid"])
        parents[pid] = int(values["PPid"])
        sizes[pid] = int(values.get("VmRSS", "0 kB").split()[0]) / 1024

    def below(pid: int) -> bool:
        while pid:
            pid = parents.get(pid, 0)
            if pid == os.getpid():
                return True
        return False

    return sum(size for pid, size in sizes.items() if below(pid))


def test_mixed_load(tmp_path: Path) -> None:
    prepare()
    world = text_world(tmp_path / "world")
    more = (*loading_from(world.folder), "--max-num-batched-tokens", "32")
    with served(world, world.names[:12], tmp_path / "log", *more) as url:
        # buffers and caches have their size after a while
        warm = Load(world, url, max(20.0, SECONDS / 10))
        warm.run()
        before = resident_mb()
        load = Load(world, url, SECONDS)
        load.run()
        after = resident_mb()
        print(f"\n{SECONDS:.0f} s: {dict(load.done)}; {before:.0f} MB before, {after:.0f} MB after")
        assert warm.wrong == [] and load.wrong == []
        assert min(load.done.values()) > 0
        # the tables of plans and of what was read, for each of some hundred loads, and the allocator's slack
        assert after - before < 0.03 * before
    assert "Traceback" not in (tmp_path / "log").read_text()
