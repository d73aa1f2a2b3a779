"""Throughput of vLLM with 0, 1, 8, … adapters and of vLLM without the plug-in, in turn; what loading adapters costs.

Request: `folder` of the model, `counts` of adapters, `requests`, `prompt`, `new`, `rounds`, `rank`, `lora`: whether
vLLM's own multi-LoRA is measured beside.
"""

from __future__ import annotations

import gc
import json
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM
from vllm import LLM, SamplingParams

from reftune import ReftConfig
from reftune.serving.vllm import ReftRequest
from reftune.serving.vllm.frontend import ready

# read by the processes that vLLM starts
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "WARNING",
}

PLAIN, WITH = "vLLM alone", "with the plug-in"


def save_adapters(folder: str, into: Path, count: int, rank: int) -> list[str]:
    """Different adapters on all layers, f7+l7."""
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = ReftConfig(r=rank, positions="f7+l7", init="random", task_type="CAUSAL_LM")
    model: Any = get_peft_model(base, config)
    paths = []
    for index in range(count):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.rsplit(".", 1)[1] == "b" and parameter.requires_grad:
                    parameter.normal_(std=0.02)
        paths.append(str(into / f"a{index}"))
        model.save_pretrained(paths[-1])
    return paths


def engine(folder: str, requests: int, length: int) -> Any:
    return LLM(
        model=folder,
        dtype="float32",
        max_model_len=length,
        max_num_seqs=min(requests, 64),
        max_num_batched_tokens=2048,
        enable_prefix_caching=False,
        enforce_eager=True,
        disable_log_stats=True,
    )


def prompts_of(count: int, length: int, vocabulary: int) -> list[Any]:
    rng = random.Random(0)
    return [{"prompt_token_ids": [rng.randrange(100, vocabulary) for _ in range(length)]} for _ in range(count)]


def seconds(llm: Any, prompts: list[Any], new: int, adapters: list[Any]) -> float:
    given = [adapters[i % len(adapters)] if adapters else None for i in range(len(prompts))]
    begin = time.perf_counter()
    llm.generate(
        prompts,
        SamplingParams(temperature=0, max_tokens=new, ignore_eos=True, detokenize=False),
        lora_request=given,
        use_tqdm=False,
    )
    return time.perf_counter() - begin


def main(request: dict[str, Any]) -> dict[str, Any]:
    os.environ.update(ENVIRONMENT)
    folder, counts = request["folder"], request["counts"]
    prompts = prompts_of(request["requests"], request["prompt"], AutoConfig.from_pretrained(folder).vocab_size)
    length = request["prompt"] + request["new"] + 8
    with tempfile.TemporaryDirectory() as into:
        paths = save_adapters(folder, Path(into), max(counts), request["rank"])
        gc.collect()
        served = engine(folder, request["requests"], length)
        # from now on, for the processes of the engine that is started next
        os.environ["REFTUNE_VLLM"] = "0"
        plain = engine(folder, request["requests"], length)
        adapters = [ReftRequest(f"a{i}", i + 1, path) for i, path in enumerate(paths)]
        result: dict[str, Any] = {"seconds": {PLAIN: []}, **loading(served, adapters, paths)}
        result["seconds"].update({str(count): [] for count in [0, *counts]})
        for index in range(request["rounds"] + 1):
            names = list(result["seconds"])
            for name in names if index % 2 else reversed(names):
                llm, chosen = (plain, []) if name == PLAIN else (served, adapters[: int(name)])
                took = seconds(llm, prompts, request["new"], chosen)
                if index:  # the first one warms up
                    result["seconds"][name].append(took)
        return {**result, "requests": len(prompts), "prompt": request["prompt"], "new": request["new"]}


def loading(llm: Any, adapters: list[Any], paths: list[str]) -> dict[str, Any]:
    """Seconds to read, check and load an adapter, and bytes of it on disk and in a worker."""
    before = llm.collective_rpc("reft_info")[0]
    times = []
    for adapter in adapters:
        begin = time.perf_counter()
        ready(llm.llm_engine, adapter)
        times.append(time.perf_counter() - begin)
    after = llm.collective_rpc("reft_info")[0]
    return {
        "load_s": [statistics.median(times), min(times), max(times)],
        "bytes": (after["bytes"] - before["bytes"]) / max(1, after["adapters"] - before["adapters"]),
        "disk_bytes": sum(file.stat().st_size for file in Path(paths[0]).iterdir() if file.suffix == ".safetensors"),
    }


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
