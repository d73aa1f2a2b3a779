"""Running answers of vLLM while adapters are loaded: how long no token comes, beside the usual time between two."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from reftune import ReftConfig
from tests.serving.vllm.engines import prepare
from tests.serving.vllm.servers import BASE, loading_from, served
from tests.serving.vllm.worlds import LAYERS, World, make_world, tiny_llama
from tests.training.text_models import SPECIAL, WORDS, word_tokenizer

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

# Seconds that a load may add to the time between two tokens.
PAUSE = 0.1
ATTEMPTS = 5
# wide enough that an adapter has megabytes
WIDTH, RANK = 1024, 64
KINDS: dict[str, dict[str, Any]] = {
    "large": {"r": RANK, "positions": "f1+l1", "tie": "group"},
    "many": {"r": 1, "positions": "f8+l8", "tie": "none"},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    prepare()
    size = {"hidden_size": WIDTH, "intermediate_size": 16, "vocab_size": len(SPECIAL) + len(WORDS)}
    base = tiny_llama(**size, num_hidden_layers=4 * LAYERS, max_position_embeddings=4096, bos_token_id=1)
    configs = {name: ReftConfig(init="random", **options) for name, options in KINDS.items()}
    found = make_world(tmp_path_factory.mktemp("pauses"), base, configs)
    word_tokenizer().save_pretrained(found.base)
    shutil.copytree(found.path("large"), found.path("nan"))
    spoil(Path(found.path("nan")) / "adapter_model.safetensors")
    return found


def spoil(weights: Path) -> None:
    """So that it is found wrong last."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(weights)
    list(tensors.values())[-1].fill_(torch.nan)
    save_file(tensors, weights)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log") / "server.log"


@pytest.fixture(scope="module")
def url(world: World, log: Path) -> Iterator[str]:
    more = ("--max-model-len", "4096", "--reft-max-rank", str(2 * RANK))
    with served(world, ["many"], log, *loading_from(world.folder), *more) as found:
        yield f"{found}/v1"


class Answer:
    """A stream of tokens, and when each came."""

    def __init__(self, url: str, model: str) -> None:
        body = {"model": model, "prompt": [5, 6, 7], "max_tokens": 4000, "temperature": 0, "ignore_eos": True}
        self.url, self.body = url, {**body, "stream": True}
        self.times: list[float] = []
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.listen)

    def __enter__(self) -> Answer:
        self.thread.start()
        self.wait(20)
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()
        self.thread.join(60)

    def listen(self) -> None:
        with httpx.stream("POST", f"{self.url}/completions", json=self.body, timeout=60) as response:
            for line in response.iter_lines():
                if line.startswith("data: {") and json.loads(line.removeprefix("data: ")).get("choices"):
                    self.times.append(time.perf_counter())
                if self.over.is_set():
                    return

    def wait(self, count: int) -> None:
        """Until so many more tokens have come."""
        wanted, end = len(self.times) + count, time.monotonic() + 60
        while len(self.times) < wanted:
            assert time.monotonic() < end and self.thread.is_alive(), "no more tokens come"
            time.sleep(0.005)

    def longest(self, first: int) -> float:
        found = self.times[first - 1 :]
        return max(b - a for a, b in itertools.pairwise(found))


def load(url: str, world: World, name: str) -> int:
    body = {"reft_name": "new", "reft_path": world.path(name)}
    return httpx.post(f"{url}/load_reft_adapter", json=body, timeout=60).status_code


def gaps(url: str, world: World, name: str, asked: str) -> tuple[float, float]:
    """Longest times between two tokens: usually, and while the adapter is loaded and taken away."""
    with Answer(url, asked) as answer:
        first = len(answer.times)
        answer.wait(60)
        usual, first = answer.longest(first), len(answer.times)
        status = load(url, world, name)
        assert status == (400 if name == "nan" else 200)
        if status == 200:
            httpx.post(f"{url}/unload_reft_adapter", json={"reft_name": "new"}, timeout=60).raise_for_status()
        answer.wait(3)
        return usual, answer.longest(first)


def held(log: Path) -> list[float]:
    """Seconds for which the engine did nothing else than give its workers an adapter, of each load so far."""
    return [float(found) / 1e3 for found in re.findall(r"a ReFT adapter of .* MiB: (\d+) ms", log.read_text())]


@pytest.mark.parametrize("asked", [BASE, "many"])
@pytest.mark.parametrize("name", ["large", "many", "nan"])
def test_no_load_holds_tokens_up(world: World, url: str, log: Path, name: str, asked: str) -> None:
    """The engine stands still for less than the pause in most loads; a client sees none when nothing else disturbs.

    Tokens may also be late because the machine is busy with other things, so that one attempt of a few is enough for
    the client.  Each attempt loads content that the workers do not have: they keep what was unloaded for a while.
    """
    seen, before = [], len(held(log))
    for attempt in range(ATTEMPTS):
        if name != "nan":
            change(Path(world.path(name)) / "adapter_model.safetensors", attempt)
        seen.append(gaps(url, world, name, asked))
    still = held(log)[before:]
    size = (Path(world.path(name)) / "adapter_model.safetensors").stat().st_size / 2**20
    print(
        f"\n{name} ({size:.0f} MiB) while {asked} answers: "
        + ", ".join(f"{gap * 1e3:.0f} ms, usually {usual * 1e3:.0f}" for usual, gap in seen)
        + "; the engine stood still for "
        + (", ".join(f"{seconds * 1e3:.0f}" for seconds in still) or "no")
        + " ms"
    )
    # what is refused never comes as far
    assert len(still) == (0 if name == "nan" else ATTEMPTS)
    assert not still or statistics.median(still) < PAUSE, still
    assert min(gap - usual for usual, gap in seen) < PAUSE, seen


def change(weights: Path, attempt: int) -> None:
    """Other weights, by a little."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(weights)
    next(iter(tensors.values())).mul_(1 + 2.0**-10 * (attempt + 1))
    save_file(tensors, weights)
