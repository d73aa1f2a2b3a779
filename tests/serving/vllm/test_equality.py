"""vLLM with the plug-in gives the tokens of transformers with reftune, in float32, whatever the engine does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.serving.vllm.engines import ask, close, engine, prepare
from tests.serving.vllm.worlds import World, make_world, mixed_requests

pytestmark = pytest.mark.vllm
prepare()

REQUESTS = 210


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    found = make_world(tmp_path_factory.mktemp("world"))
    assert len(found.names) >= 32
    return found


def wrong(llm: Any, world: World, requests: list[tuple[tuple[int, ...], str | None]]) -> list[Any]:
    found, wanted = ask(llm, world, requests), world.answers(requests)
    return [(len(prompt), name) for (prompt, name), a, b in zip(requests, found, wanted, strict=True) if a != b]


def next_turns(
    world: World, requests: list[tuple[tuple[int, ...], str | None]]
) -> list[tuple[tuple[int, ...], str | None]]:
    """The same conversations, one turn on: prompt, answer and a few new tokens."""
    answers = world.answers(requests)
    return [((*prompt, *answer, 7, 8, 9), name) for (prompt, name), answer in zip(requests, answers, strict=True)]


def test_adapters_change_the_answers(world: World) -> None:
    prompt = tuple(range(10, 60))
    base, *others = world.answers([(prompt, None), *((prompt, name) for name in world.names)])
    # an edit of the last layer alone, of tokens before the last, changes nothing
    assert sum(other != base for other in others) >= 0.7 * len(others)


@pytest.fixture(scope="module")
def eager(world: World) -> Iterator[Any]:
    llm = engine(world)
    yield llm
    close(llm)


def test_mixed_requests(world: World, eager: Any) -> None:
    requests = mixed_requests(world.names, count=REQUESTS)
    assert wrong(eager, world, requests) == []
    # again, with the cache of prefixes full of what others left
    assert wrong(eager, world, mixed_requests(world.names, count=REQUESTS // 3, seed=1)) == []


def test_conversations_go_on(world: World, eager: Any) -> None:
    first = mixed_requests(world.names, count=60, seed=2)
    assert wrong(eager, world, first) == []
    assert wrong(eager, world, next_turns(world, first)) == []


def test_cached_prefixes_are_used(world: World, eager: Any) -> None:
    prompt = tuple(range(20, 120))
    name = next(name for name in world.names if name.endswith("-l1"))
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    from reftune.serving.vllm import ReftRequest

    def cached(name: str | None) -> int:
        request = None if name is None else ReftRequest(name, 1, world.path(name))
        (out,) = eager.generate(
            [TokensPrompt(prompt_token_ids=list(prompt))],
            SamplingParams(temperature=0, max_tokens=1, detokenize=False),
            lora_request=request,
            use_tqdm=False,
        )
        return out.num_cached_tokens

    assert cached(None) < 96
    # the last token lies in the fourth block: three are those of the base model
    assert cached(name) == 96


def test_preempted_requests(world: World) -> None:
    llm = engine(world, num_gpu_blocks_override=14, max_num_seqs=8, max_num_batched_tokens=64)
    try:
        requests = [
            (prompt, name) for prompt, name in mixed_requests(world.names, count=80, seed=3) if len(prompt) > 30
        ]
        found, wanted = ask(llm, world, requests, 40), world.answers(requests, 40)
        assert [r for r, a, b in zip(requests, found, wanted, strict=True) if a != b] == []
        preempted = [m.value for m in llm.get_metrics() if m.name == "vllm:num_preemptions"]
        assert sum(preempted) > 0
    finally:
        close(llm)


def test_compiled(world: World) -> None:
    llm = engine(world, enforce_eager=False)
    try:
        assert wrong(llm, world, mixed_requests(world.names, count=REQUESTS, seed=4)) == []
    finally:
        close(llm)


def test_without_our_keys_answers_are_wrong(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: prefixes of one adapter are taken for another's."""
    from reftune.serving.vllm import keys

    # the engine's core in this process, where it can be reached
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setattr(keys, "block_key", lambda *args: None)
    llm = engine(world)
    try:
        assert wrong(llm, world, mixed_requests(world.names, count=REQUESTS)) != []
    finally:
        close(llm)


@pytest.mark.parametrize(
    "parallel", [{"tensor_parallel_size": 2}, {"pipeline_parallel_size": 2, "enforce_eager": False}], ids=["TP", "PP"]
)
def test_several_workers(world: World, parallel: dict[str, Any]) -> None:
    llm = engine(world, **parallel)
    try:
        assert wrong(llm, world, mixed_requests(world.names, count=REQUESTS, seed=5)) == []
    finally:
        close(llm)
