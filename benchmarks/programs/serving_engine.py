"""One engine of vLLM in a process of its own, which answers through a pipe.

The plug-in changes vLLM in the process that takes the requests, too, so engines with and without it do not share one.

Must not know: which engines are compared.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

# what an engine serves beside the base model
NOTHING, REFT, LORA = "nothing", "ReFT", "LoRA"
# read by the processes that vLLM starts
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
BLOCK = 128


def chosen(requests: int, count: int, turn: int) -> list[int | None]:
    """Which adapter each request is for: all by turns; if there are more of them than requests, others in each turn."""
    step = max(1, count // requests)
    return [(turn + i * step) % count if count else None for i in range(requests)]


@dataclass(frozen=True)
class Load:
    """What all engines of a run are given."""

    folder: str
    prompts: list[list[int]]
    new: int
    bytes_a_token: int
    """Of the cache of keys and values."""

    @property
    def length(self) -> int:
        return len(self.prompts[0]) + self.new

    @property
    def cache_bytes(self) -> int:
        """Room for all requests at once and no more: the first pass touches all of it, so none pays for it later."""
        blocks = len(self.prompts) * -(-self.length // BLOCK) + 2
        return blocks * BLOCK * self.bytes_a_token


def serve(pipe: Connection, load: Load, kind: str, options: dict[str, Any]) -> None:
    """Answer (method, arguments) until None, or until the other end is gone; with an exception, if there is one."""
    os.environ.update(ENVIRONMENT, REFTUNE_VLLM=str(int(kind == REFT)))
    engine = None
    try:
        engine = Engine(load, kind, options)
        pipe.send(None)
        while (asked := pipe.recv()) is not None:
            method, arguments = asked
            pipe.send(getattr(engine, method)(*arguments))
    except EOFError:
        pass
    except Exception as error:
        # vLLM's own may not survive the pipe, and of many lines the benchmark shows the last
        pipe.send(RuntimeError(f"{type(error).__name__}: {' '.join(str(error).split())}"))
        raise
    finally:
        if engine is not None:
            # before multiprocessing waits for this process's children, which would go on
            engine.llm.llm_engine.engine_core.shutdown()


class Engine:
    """`options` are those of vLLM that only this engine has."""

    def __init__(self, load: Load, kind: str, options: dict[str, Any]) -> None:
        from vllm import LLM, SamplingParams  # noqa: PLC0415 - after the environment was set, and not in the driver

        self.kind, self.slots = kind, options.get("max_loras", 0)
        self.llm = LLM(
            model=load.folder,
            dtype="float32",
            max_model_len=load.length + 1,
            max_num_seqs=len(load.prompts),
            max_num_batched_tokens=2048,
            block_size=BLOCK,
            kv_cache_memory_bytes=load.cache_bytes,
            enable_prefix_caching=False,
            enforce_eager=True,
            disable_log_stats=True,
            **options,
        )
        self.prompts: list[Any] = [{"prompt_token_ids": ids} for ids in load.prompts]
        self.sampling = SamplingParams(temperature=0, max_tokens=load.new, ignore_eos=True, detokenize=False)
        self.adapters: list[Any] = []

    def load(self, paths: Sequence[str]) -> dict[str, Any]:
        """Load adapters one by one: seconds of each, and what one takes in the worker and on disk."""
        from vllm.lora.request import LoRARequest  # noqa: PLC0415

        from reftune.serving.vllm import ReftRequest  # noqa: PLC0415

        request = ReftRequest if self.kind == REFT else LoRARequest
        self.adapters = [request(f"a{i}", i + 1, path) for i, path in enumerate(paths)]
        times = []
        for adapter in self.adapters:
            begin = time.perf_counter()
            self._load_one(adapter)
            times.append(time.perf_counter() - begin)
        files = [file for file in Path(paths[0]).iterdir() if file.suffix == ".safetensors"]
        return {"load_s": times, **self._memory(), "disk_bytes": sum(file.stat().st_size for file in files)}

    def run(self, count: int, turn: int) -> tuple[float, list[list[int]]]:
        """Seconds of all requests, which are for `count` adapters; and the tokens of their answers."""
        given = [None if i is None else self.adapters[i] for i in chosen(len(self.prompts), count, turn)]
        if count <= self.slots:
            # all have room in vLLM's slots for LoRA, where they would be if others had not been asked for in between
            for adapter in self.adapters[:count]:
                self._load_one(adapter)
        begin = time.perf_counter()
        outputs = self.llm.generate(self.prompts, self.sampling, lora_request=given, use_tqdm=False)
        seconds = time.perf_counter() - begin
        return seconds, [list(output.outputs[0].token_ids) for output in outputs]

    def _load_one(self, adapter: Any) -> None:
        if self.kind == REFT:
            from reftune.serving.vllm.frontend import ready  # noqa: PLC0415

            ready(self.llm.llm_engine, adapter)
        else:
            self.llm.llm_engine.add_lora(adapter)

    def _memory(self) -> dict[str, float]:
        if self.kind == LORA:
            return self.llm.collective_rpc("lora_memory")[0]
        info = self.llm.collective_rpc("reft_info")[0]
        return {"bytes": info["bytes"] / info["adapters"]}


class LoraMemory:
    """A method for vLLM's worker, which takes it as `worker_extension_cls`: bytes of a LoRA, kept and in a slot."""

    model_runner: Any

    def lora_memory(self) -> dict[str, float]:
        manager = self.model_runner.lora_manager._adapter_manager
        kept = list(manager._registered_adapters.cache.values())
        parts = [(weights.lora_a, weights.lora_b) for lora in kept for weights in lora.loras.values()]
        stacked = [(module.lora_a_stacked, module.lora_b_stacked) for module in manager.modules.values()]
        return {"bytes": tensor_bytes(parts) / len(kept), "slot_bytes": tensor_bytes(stacked) / manager.lora_slots}


def tensor_bytes(parts: Any) -> int:
    """Of tensors in nested sequences; parts of a layer that a LoRA leaves alone are None."""
    if parts is None:
        return 0
    return sum(map(tensor_bytes, parts)) if isinstance(parts, (list, tuple)) else parts.nbytes
