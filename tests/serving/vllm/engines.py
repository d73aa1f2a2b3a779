"""vLLM engines for tests, on a CPU.

Must not know: adapters' formulas.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

from tests.serving.vllm.worlds import BLOCK, CHUNK, NEW, World

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


# Triton decides it when it is first imported
needs_interpreter = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="runs in Triton's interpreter: make test-vllm"
)


def prepare() -> None:
    """vLLM reads its environment when it is imported and in the processes that it starts."""
    pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")
    os.environ.update(ENVIRONMENT)


def engine(world: World, **more: Any) -> Any:
    """An engine whose settings are hard on the plug-in: chunks of 16 tokens, small blocks, the cache of prefixes on."""
    from vllm import LLM

    arguments: dict[str, Any] = {
        "model": world.base,
        "skip_tokenizer_init": True,
        "dtype": "float32",
        "max_model_len": 256,
        "enforce_eager": True,
        "max_num_seqs": 8,
        "max_num_batched_tokens": CHUNK,
        "block_size": BLOCK,
        "enable_prefix_caching": True,
        "disable_log_stats": False,
    }
    return LLM(**{**arguments, **more})


def close(llm: Any) -> None:
    """End its processes."""
    # on a CPU its workers do not go by themselves, however long it waits
    llm.llm_engine.engine_core.shutdown(timeout=0.5)


def ask(llm: Any, world: World, requests: list[tuple[tuple[int, ...], str | None]], new: int = NEW) -> list[list[int]]:
    """Greedy tokens of vLLM, all requests at once."""
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    outputs = llm.generate(
        [TokensPrompt(prompt_token_ids=list(prompt)) for prompt, _ in requests],
        SamplingParams(temperature=0, max_tokens=new, ignore_eos=True, detokenize=False),
        lora_request=[None if name is None else named(world, name) for _, name in requests],
        use_tqdm=False,
    )
    return [list(output.outputs[0].token_ids) for output in outputs]


def named(world: World, name: str) -> Any:
    """What asks for an adapter of the world, ReFT or LoRA."""
    from vllm.lora.request import LoRARequest

    from reftune.serving.vllm import ReftRequest

    known = [*world.names, *world.marked, *world.loras]
    kind = LoRARequest if name in world.loras else ReftRequest
    return kind(name, known.index(name) + 1, world.path(name))


def wrong(llm: Any, world: World, requests: list[tuple[tuple[int, ...], str | None]]) -> list[Any]:
    """Length and adapter of the requests that vLLM answers differently."""
    found, wanted = ask(llm, world, requests), world.answers(requests)
    return [(len(prompt), name) for (prompt, name), a, b in zip(requests, found, wanted, strict=True) if a != b]


def cached_tokens(llm: Any, world: World, prompt: tuple[int, ...], name: str | None) -> int:
    """How many tokens of a prompt the cache of prefixes has for this adapter."""
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    (output,) = llm.generate(
        [TokensPrompt(prompt_token_ids=list(prompt))],
        SamplingParams(temperature=0, max_tokens=1, detokenize=False),
        lora_request=None if name is None else named(world, name),
        use_tqdm=False,
    )
    return output.num_cached_tokens
