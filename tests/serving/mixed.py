"""A server under mixed load: adapters come and go, clients hang up, bodies end halfway; every token is checked.

Asked is a server of either kind; what is right is what transformers answers to each request alone.

Must not know: how servers are made.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx

from tests.serving.vllm.servers import BASE
from tests.serving.vllm.worlds import NEW, World, mixed_requests

MALFORMED = (b"", b"{", b"[]", b'{"model": 7}', b'{"model": "tiny", "prompt": {"a": 1}}', b"\xff\xfe")


class Reader(NamedTuple):
    """How the tokens of an answer are asked for, and read from a choice or from a part of one that is streamed."""

    asked: dict[str, Any]
    tokens: Callable[[dict[str, Any]], list[Any]]
    written: Callable[[list[int]], list[Any]] = list
    """Token ids as they are read."""


class Load:
    """Threads that ask a server until the time is over, and what went wrong."""

    def __init__(self, world: World, url: str, seconds: float, reader: Reader) -> None:
        self.world, self.url, self.reader = world, url, reader
        self.http = httpx.Client(base_url=f"{url}/v1", timeout=60)
        self.end = time.monotonic() + seconds
        self.done: Counter[str] = Counter()
        self.wrong: list[Any] = []
        requests = mixed_requests(world.names[:12], count=60, seed=9)
        self.requests = [(tuple(t % 40 + 4 for t in prompt), name) for prompt, name in requests]
        self.wanted = [reader.written(answer) for answer in world.answers(self.requests)]
        # two adapters that take turns under one name
        self.pair = world.names[12:14]
        self.prompt = tuple(range(5, 45))
        self.either = [reader.written(a) for a in world.answers([(self.prompt, name) for name in self.pair])]
        assert self.either[0] != self.either[1]

    def run(self) -> None:
        works = [self.ask, self.ask, self.ask, self.hang_up, self.half_send, self.malform, self.move, self.ask_moving]
        threads = [threading.Thread(target=self.repeat, args=(work,)) for work in works]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.http.close()

    def repeat(self, work: Any) -> None:
        rng = random.Random(f"{work.__name__} {threading.get_ident()}")
        while time.monotonic() < self.end and len(self.wrong) < 10:
            try:
                work(rng)
            except Exception as error:  # noqa: BLE001 — whatever it is, it is to be told
                self.wrong.append((work.__name__, repr(error)))
            self.done[work.__name__] += 1

    def post(self, route: str, **body: Any) -> httpx.Response:
        return self.http.post(route, json=body)

    def body(self, model: str | None, prompt: tuple[int, ...], **more: Any) -> dict[str, Any]:
        asked = {"model": model or BASE, "prompt": list(prompt), "max_tokens": NEW, "temperature": 0}
        return {**asked, "ignore_eos": True, **self.reader.asked, **more}

    def ask(self, rng: random.Random) -> None:
        """One answer, whole or in a stream."""
        i = rng.randrange(len(self.requests))
        prompt, name = self.requests[i]
        if rng.random() < 0.5:
            found = self.reader.tokens(self.post("completions", **self.body(name, prompt)).json()["choices"][0])
        else:
            found = []
            with self.http.stream("POST", "completions", json=self.body(name, prompt, stream=True)) as response:
                for line in response.iter_lines():
                    if line.startswith("data: {"):
                        found += self.reader.tokens(json.loads(line.removeprefix("data: "))["choices"][0])
        if found != self.wanted[i]:
            self.wrong.append((name, len(prompt), found, self.wanted[i]))

    def hang_up(self, rng: random.Random) -> None:
        """In the midst of a stream."""
        prompt, name = rng.choice(self.requests)
        body = self.body(name, prompt, max_tokens=100, stream=True)
        with self.http.stream("POST", "completions", json=body) as response:
            for _ in zip(range(rng.randrange(4)), response.iter_lines(), strict=False):
                pass

    def half_send(self, rng: random.Random) -> None:
        """A head or a body that ends too early, or a whole request whose answer nobody waits for."""
        prompt, name = rng.choice(self.requests)
        body = json.dumps(self.body(name, prompt, max_tokens=100)).encode()
        place = urlsplit(self.url)
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\n"
        whole = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        assert place.hostname is not None and place.port is not None
        with socket.create_connection((place.hostname, place.port), timeout=30) as connection:
            connection.sendall(whole[: rng.choice((rng.randrange(len(whole)), len(whole)))])
            time.sleep(rng.random() / 5)

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
        response = self.post("completions", **self.body("moving", self.prompt))
        if response.status_code != 404 and self.reader.tokens(response.json()["choices"][0]) not in self.either:
            self.wrong.append(("moving", response.text[:200]))


class Held(NamedTuple):
    """What all processes below this one hold."""

    megabytes: float
    threads: int
    sockets: int


def held() -> Held:
    parents, found = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            lines = (folder / "status").read_text().splitlines()
            values = dict(line.split(":", 1) for line in lines if ":" in line)
            targets = [os.readlink(link) for link in (folder / "fd").iterdir()]
        except OSError:  # it has ended, or a descriptor was closed
            continue
        pid = int(values["Pid"])
        parents[pid] = int(values["PPid"])
        size = int(values.get("VmRSS", "0 kB").split()[0]) / 1024
        found[pid] = (size, int(values["Threads"]), sum(target.startswith("socket:") for target in targets))

    def below(pid: int) -> bool:
        while pid:
            pid = parents.get(pid, 0)
            if pid == os.getpid():
                return True
        return False

    sums = [sum(values) for values in zip(*(found[pid] for pid in found if below(pid)), strict=True)]
    return Held(sums[0], int(sums[1]), int(sums[2]))


def settled(patience: float = 15) -> Held:
    """Once connections that clients have closed are gone from the server too: as few sockets as there will be."""
    end = time.monotonic() + patience
    least = held()
    while time.monotonic() < end:
        time.sleep(0.5)
        least = min(least, held(), key=lambda now: now.sockets)
    return held()._replace(sockets=least.sockets)


def soak(world: World, url: str, reader: Reader, *, seconds: float, warm: float) -> tuple[list[Any], Held, Held]:
    """What went wrong, and what the server held before and after; buffers and caches have their size when warm."""
    first = Load(world, url, warm, reader)
    first.run()
    before = settled()
    load = Load(world, url, seconds, reader)
    load.run()
    after = settled()
    print(f"\n{seconds:.0f} s: {sum(load.done.values())} requests, {dict(load.done)}; before {before}, after {after}")
    assert first.wrong or min(load.done.values()) > 0
    return first.wrong + load.wrong, before, after
