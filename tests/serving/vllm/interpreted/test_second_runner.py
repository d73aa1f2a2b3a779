"""vLLM's second runner, that of GPUs, on a CPU; and the plug-in's way of an accelerator: bank and kernel."""

from __future__ import annotations

import pytest

from tests.serving.vllm.engines import ask, close, engine, needs_interpreter, prepare
from tests.serving.vllm.worlds import World, add_loras, make_world, mixed_requests

pytestmark = [pytest.mark.vllm, needs_interpreter]

LORAS = ("lora-one", "lora-two")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    prepare()
    found = make_world(tmp_path_factory.mktemp("world"))
    add_loras(found, LORAS)
    return found


def second_runner(llm: object) -> bool:
    return llm.llm_engine.vllm_config.use_v2_model_runner  # type: ignore[attr-defined]


def test_second_runner(world: World) -> None:
    # few blocks, so that requests are preempted and come again
    llm = engine(world, num_gpu_blocks_override=14, enable_lora=True, max_loras=2, max_lora_rank=8)
    try:
        assert second_runner(llm)
        requests = mixed_requests([*world.names, *LORAS], count=70, seed=7)
        assert {*LORAS, None} < {name for _, name in requests}
        assert ask(llm, world, requests) == world.answers(requests)
    finally:
        close(llm)


def test_bank_and_kernel(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFTUNE_TEST_BANK", "1")
    # every adapter of the world has few sets, so that few slots do: they change hands all the time
    names = [name for name in world.names if name != "ties-none"]
    llm = engine(world, additional_config={"reftune": {"slots": 32, "max_rank": 6}})
    try:
        requests = mixed_requests(names, count=60, seed=8)
        assert ask(llm, world, requests) == world.answers(requests)
        (info,) = llm.collective_rpc("reft_info")
        assert 0 < info["slots"] <= 32 and info["missing"] == 0
        assert info["adapters"] > 20
    finally:
        close(llm)
