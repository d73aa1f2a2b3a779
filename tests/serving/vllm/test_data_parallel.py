"""Data parallel: every rank has the adapters, those of run time too, whichever API process is asked."""

from __future__ import annotations

import re
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.serving.vllm.engines import prepare
from tests.serving.vllm.servers import BASE, loading_from, served, text_world
from tests.serving.vllm.worlds import NEW, World, mixed_requests

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

RANKS = 2
Request = tuple[tuple[int, ...], str | None]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    prepare()
    return text_world(tmp_path_factory.mktemp("world"))


def complete(url: str, prompt: tuple[int, ...], name: str | None, rank: int | None) -> Any:
    """By a connection of its own, which any API process may take."""
    import httpx

    body = {"model": name or BASE, "prompt": list(prompt), "max_tokens": NEW, "temperature": 0, "ignore_eos": True}
    headers = {} if rank is None else {"X-data-parallel-rank": str(rank)}
    return httpx.post(f"{url}/v1/completions", json={**body, "return_token_ids": True}, headers=headers, timeout=60)


def tokens(url: str, requests: Sequence[tuple[Request, int | None]]) -> list[list[int]]:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda r: complete(url, *r[0], r[1]), requests))
    return [answer.raise_for_status().json()["choices"][0]["token_ids"] for answer in answers]


def finished(url: str) -> Counter[int]:
    """Requests that each rank has answered."""
    import httpx

    lines = re.findall(r'vllm:request_success_total\{.*engine="(\d+)".*\} (\S+)', httpx.get(f"{url}/metrics").text)
    found: Counter[int] = Counter()
    for rank, count in lines:
        found[int(rank)] += int(float(count))
    return found


def since(url: str, before: Counter[int], count: int) -> Counter[int]:
    """Of `count` requests, how many each rank has answered; they are counted soon after they are answered."""
    deadline = time.monotonic() + 10
    while (found := finished(url) - before).total() < count and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def load(url: str, route: str, **body: Any) -> None:
    import httpx

    httpx.post(f"{url}/v1/{route}", json=body, timeout=60).raise_for_status()


def test_every_rank_and_every_process(world: World, tmp_path: Path) -> None:
    names, one, other = world.names[:6], *world.names[6:8]
    requests = [(tuple(t % 40 + 4 for t in prompt), name) for prompt, name in mixed_requests(names, count=36, seed=3)]
    prompt = tuple(range(4, 44))
    wanted_one, wanted_other = ({tuple(answer)} for answer in world.answers([(prompt, one), (prompt, other)]))
    assert wanted_one != wanted_other
    folder = world.folder / "moving"
    shutil.copytree(world.path(one), folder)

    def moving() -> set[tuple[int, ...]]:
        return set(map(tuple, tokens(url, [((prompt, "moving"), rank) for rank in range(RANKS) for _ in range(4)])))

    with served(world, names, tmp_path / "log", "--data-parallel-size", str(RANKS), *loading_from(world.folder)) as url:
        for rank in range(RANKS):
            before = finished(url)
            assert tokens(url, [(request, rank) for request in requests]) == world.answers(requests)
            # they were asked of this rank and of no other
            assert since(url, before, len(requests)) == Counter({rank: len(requests)})
        before = finished(url)
        assert tokens(url, [(request, None) for request in requests]) == world.answers(requests)
        assert set(since(url, before, len(requests))) == set(range(RANKS))
        load(url, "load_reft_adapter", reft_name="moving", reft_path=str(folder))
        assert moving() == wanted_one
        for file in Path(world.path(other)).iterdir():
            shutil.copy(file, folder)
        load(url, "load_reft_adapter", reft_name="moving", reft_path=str(folder), load_inplace=True)
        assert moving() == wanted_other
        load(url, "unload_reft_adapter", reft_name="moving")
        assert {complete(url, prompt, "moving", rank).status_code for rank in range(RANKS) for _ in range(4)} == {404}
    assert (tmp_path / "log").read_text().count("Started 2 API server processes") == 1
