"""Part 3, prefill and decode with transformers: the bare model beside adapters that rest, that edit, and 32 in a batch.

Two models of the same weights take turns, one bare and one with adapters.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from transformers import CompileConfig

from ..cases import random_rows
from ..peers.bases import load_base
from ..peers.protocol import Case
from ..programs.generate import adapted, once
from ..stats import Spread, ratios
from .common import Part
from .shapes import shapes

BASE, RESTING, ONE, MANY = "base", "adapter that rests", "one adapter", "32 adapters"
ADAPTERS = 32
PROMPT, NEW, ROUNDS = 512, 32, 4
BATCHES = (1, 32)


class Pair:
    """A bare model and one with adapters, of a shape."""

    def __init__(self, part: Part, shape: dict[str, Any], adapters: int) -> None:
        self.part = part
        self.vocabulary = shape["vocab_size"]
        self.prompt, self.new, self.rounds = (16, 6, 2) if part.tiny else (PROMPT, NEW, ROUNDS)
        case = Case(
            layers=[],
            first=0,
            last=0,
            rank=0,
            rows=[],
            batch_size=0,
            model={"llama": shape},
            device=part.device,
            dtype="bfloat16" if part.cuda else "float32",
        )
        self.base = self._loaded(case)
        self.adapted = adapted(self._loaded(case), adapters)
        self.adapters = adapters

    def _loaded(self, case: Case) -> Any:
        torch.manual_seed(0)
        base = load_base(case)
        base.config.use_cache = base.generation_config.use_cache = True
        return base

    def ids(self, batch: int) -> torch.Tensor:
        rows = random_rows(self.prompt, count=batch, response=0, vocabulary=self.vocabulary)
        return torch.tensor([ids for ids, _ in rows], device=self.part.device)

    def run(self, name: str, ids: torch.Tensor, new: int, **more: Any) -> tuple[float, float | None]:
        """Seconds of prefill and of a decoded token."""
        if name == BASE:
            return once(self.base, ids, new, None, **more)
        names = [f"a{row % self.adapters}" for row in range(len(ids))] if name == MANY else None
        with self.adapted.disable_adapter() if name == RESTING else nullcontext():
            return once(self.adapted, ids, new, names, **more)

    def measure(self, batch: int, names: list[str], **more: Any) -> dict[str, Any]:
        """All of these in turn, there and back."""
        ids = self.ids(batch)
        warm = {}
        for name in names:
            begin = time.perf_counter()
            self.run(name, ids, self.new, **more)
            warm[name] = round(time.perf_counter() - begin, 2)
        found: dict[str, dict[str, list[float]]] = {name: {"prefill_s": [], "decode_s": []} for name in names}
        for index in range(self.rounds):
            for name in names if index % 2 else reversed(names):
                prefill, decode = self.run(name, ids, self.new, **more)
                found[name]["prefill_s"].append(prefill)
                found[name]["decode_s"].append(decode or 0.0)
        relative = {
            f"{name}: {kind} ÷ base": ratios(times[f"{kind}_s"], found[names[0]][f"{kind}_s"]).median
            for name, times in found.items()
            for kind in ("prefill", "decode")
            if name != names[0]
        }
        decode = Spread.of(found[names[0]]["decode_s"]).median
        return {"base_tokens_s": batch / decode, **relative, "variants": found, "first_call_s": warm, "batch": batch}

    def waits(self, batch: int) -> dict[str, Any]:
        """How often the host waits for the device in a prefill and 4 decoded tokens, as CUDA counts it."""
        ids = self.ids(batch)
        found = {}
        for name in (BASE, ONE):
            self.run(name, ids, 4)
            with counted_waits() as counted:
                self.run(name, ids, 4)
            found[name] = counted[0]
        return found


@contextmanager
def counted_waits() -> Iterator[list[int]]:
    """CUDA's warnings about waiting; those that the clock itself makes are not among them."""
    counted = [0]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield counted
        finally:
            torch.cuda.set_sync_debug_mode("default")
    counted[0] = sum("synchronizing" in str(one.message) for one in caught)


def compiled_arguments(part: Part) -> dict[str, Any]:
    """Of `generate`: the static cache, with which transformers compiles decoding by itself on a GPU."""
    if part.cuda:
        return {"cache_implementation": "static"}
    # on a CPU only to see that it runs
    config = CompileConfig(backend="eager")
    config._compile_all_devices = True
    return {"cache_implementation": "static", "compile_config": config}


def measure_shape(part: Part, name: str, shape: dict[str, Any], *, compiles: bool) -> None:
    adapters = 4 if part.tiny else ADAPTERS
    if not part.tiny and part.left < (needs := 2 * shape["num_hidden_layers"]):
        return part.skip(name, f"{part.left:.0f} s were left, about {needs} are needed")
    began = time.perf_counter()
    pair = Pair(part, shape, adapters)
    part.add(f"{name}: made", {"seconds": time.perf_counter() - began, "adapters": adapters})
    for batch in (1, adapters) if part.tiny else BATCHES:
        names = [BASE, RESTING, ONE, *([MANY] if batch > 1 else [])]
        part.attempt(f"{name}: eager, batch {batch}", pair.measure, batch, names, needs=0 if part.tiny else 12)
    if part.cuda:
        part.attempt(f"{name}: waits, batch 1", pair.waits, 1, needs=3)
    if compiles:
        more = compiled_arguments(part)
        for other in (ONE,) if part.tiny else (ONE, RESTING, MANY):
            key = f"{name}: static cache, compiled, batch {adapters}, {other}"
            # it may compile for longer than there is time; the part's time-out ends it then
            part.attempt(key, lambda n=other: pair.measure(adapters, [BASE, n], **more), needs=0 if part.tiny else 15)


def main(given: list[str] | None = None) -> None:
    part = Part.of_command("generate", given)
    sizes = shapes(tiny=part.tiny)
    order = list(sizes) if part.tiny else ["1B", "8B"]
    for name in order:
        part.free()
        try:
            # a compilation of 16 blocks is enough to know
            shape = {**sizes[name], "num_hidden_layers": 2} if part.tiny else sizes[name]
            measure_shape(part, name, shape, compiles=name != "8B")
        except (RuntimeError, ValueError, ImportError) as error:
            part.add(f"{name}: the models", {"error": f"{type(error).__name__}: {error}"})
    part.finish()


if __name__ == "__main__":
    main()
