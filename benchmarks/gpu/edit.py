"""Part 1, the Triton kernel of the vLLM plug-in: right in all dtypes and sizes, in a captured graph, and how fast.

The reference is the same affine map in float64, written out here, on the values that the kernel was given.  Without a
GPU the kernel runs in Triton's interpreter, if it was asked for (TRITON_INTERPRET=1), and only the toy sizes.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reftune.serving.folded import Affine
from reftune.serving.vllm.bank import Bank

from .common import Part, in_processes

DTYPES = ("bfloat16", "float16", "float32")
RANKS = (1, 2, 3, 4, 8, 16, 32, 64, 128)
WIDTHS = (576, 2048, 2100, 4096, 8192)
TOKENS = (1, 3, 17, 257)
# Of a 1B Llama's and an 8B Llama's block, all layers of the latter; in µs a layer.
DECODE_WIDTH, DECODE_LAYERS, DECODE_RANK = 4096, 32, 8
BATCHES = (1, 8, 32, 128, 512)
ADAPTERS = (0, 1, 8, 64, 512)
SLOTS = 512
WORKERS = 12
# float32 sums of so many products, relative to the largest value of the row
FLOAT32_SUMS = 2e-5


@dataclass(frozen=True)
class Step:
    """A bank of two layers, tokens, and which of them get which map."""

    bank: Bank
    maps: list[Affine]
    hidden: Tensor
    residual: Tensor | None
    generator: torch.Generator

    @classmethod
    def of(cls, *, width: int, rank: int, tokens: int, dtype: str, summed: bool, device: str, maps: int = 3) -> Step:
        generator = torch.Generator().manual_seed(width + 7 * rank + 11 * tokens)
        drawn = [affine(width, rank, generator) for _ in range(maps)]
        bank = Bank(slots=maps + 1, layers=(0, 1), rank=rank, width=width, tokens=tokens, device=torch.device(device))
        hidden, residual = (
            torch.randn(tokens, width, generator=generator).to(device, getattr(torch, dtype)) for _ in range(2)
        )
        return cls(bank, drawn, hidden, residual if summed else None, generator)

    def choose(self) -> list[int]:
        """Give each token a map or none (−1), at random and anew."""
        count = len(self.hidden)
        chosen = torch.randint(-1, len(self.maps), (count,), generator=self.generator).tolist()
        ranges: dict[Any, list[tuple[int, int]]] = {}
        for token, index in enumerate(chosen):
            if index >= 0:
                ranges.setdefault((str(index), ()), []).append((token, token + 1))
        self.bank.assign(ranges, lambda key: {1: self.maps[int(key[0])]})
        return chosen

    def state(self) -> Tensor:
        """The output of the block in float64, rounded as it is where two tensors are added."""
        return (self.hidden if self.residual is None else self.hidden + self.residual).double()

    def wanted(self, chosen: list[int]) -> Tensor:
        """The new states in float64."""
        state = self.state()
        new = state.clone()
        for index, one in enumerate(self.maps):
            rows = torch.tensor([i for i, c in enumerate(chosen) if c == index], device=state.device)
            if len(rows):
                A, B, g, v = (t.to(state.device).double() for t in one if t is not None)
                h = state[rows]
                new[rows] = h + (h @ A.T) @ B + g * h + v
        return new


def affine(width: int, rank: int, generator: torch.Generator) -> Affine:
    """A random map that moves a state by about its own size, whatever width and rank."""
    A, B = (torch.randn(rank, width, generator=generator) / size**0.5 for size in (width, rank))
    g, v = (torch.randn(width, generator=generator) for _ in range(2))
    return Affine(A, B, g, v)


# --- right ------------------------------------------------------------------------------------------------------------


def correctness(rank: int, dtype: str, summed: bool, widths: tuple[int, ...], device: str) -> dict[str, Any]:
    """The worst deviation from float64 over widths and numbers of tokens; 1 is what the dtype's rounding allows."""
    worst, relative, untouched, cases = 0.0, 0.0, True, 0
    for width in widths:
        for tokens in TOKENS:
            step = Step.of(width=width, rank=rank, tokens=tokens, dtype=dtype, summed=summed, device=device)
            chosen = step.choose()
            wanted = step.wanted(chosen)
            hidden, residual = step.hidden.clone(), None if step.residual is None else step.residual.clone()
            step.bank.apply(hidden, residual, 1)
            found = hidden if residual is None else residual
            edited = torch.tensor(chosen, device=hidden.device) >= 0
            before = step.hidden if step.residual is None else step.residual
            untouched &= torch.equal(found[~edited], before[~edited])
            if residual is not None:
                untouched &= torch.equal(hidden[~edited], step.hidden[~edited]) and not bool(hidden[edited].any())
            if bool(edited.any()):
                off, size = (found.double() - wanted)[edited].abs(), wanted[edited].abs()
                # the sum of a block's two outputs may be rounded or not
                eps = torch.finfo(found.dtype).eps
                rounded = size if residual is None else size + step.state()[edited].abs()
                allowed = eps * rounded + FLOAT32_SUMS * size.amax(-1, keepdim=True)
                worst = max(worst, float((off / allowed).nan_to_num(nan=float("inf")).max()))
                relative = max(relative, float(off.norm() / size.norm()))
            cases += 1
    return {
        "right": bool(worst <= 1 and untouched),
        "worst_of_allowed": worst,
        "relative_error": relative,
        "untouched_tokens_kept": bool(untouched),
        "cases": cases,
    }


def in_graph(device: str, *, width: int = 2048, tokens: int = 65, replays: int = 5) -> dict[str, Any]:
    """A captured edit, replayed with other slots each time; and whether a step waits for the device."""
    step = Step.of(width=width, rank=8, tokens=tokens, dtype="bfloat16", summed=True, device=device)
    assert step.residual is not None
    given = step.hidden.clone(), step.residual.clone()
    hidden, residual = step.hidden.clone(), step.residual.clone()
    step.choose()
    step.bank.apply(hidden, residual, 1)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step.bank.apply(hidden, residual, 1)
    worst = 0.0
    for _ in range(replays):
        chosen = step.choose()
        hidden.copy_(given[0])
        residual.copy_(given[1])
        graph.replay()
        wanted = step.wanted(chosen)
        size = wanted.abs()
        # of tokens without an edit, the output is still the sum of the two
        off = (hidden.double() + residual.double() - wanted).abs()
        allowed = 2 * torch.finfo(torch.bfloat16).eps * (size + given[1].double().abs())
        worst = max(worst, float((off / (allowed + FLOAT32_SUMS * size.amax(-1, keepdim=True))).max()))
    return {"right": worst <= 1, "worst_of_allowed": worst, "replays": replays}


def no_waiting(device: str) -> dict[str, Any]:
    """Steps of a server under CUDA's own check: an error where the host waits for the device."""
    step = Step.of(width=2048, rank=8, tokens=65, dtype="bfloat16", summed=True, device=device)
    step.choose()
    step.bank.apply(step.hidden, step.residual, 1)
    torch.cuda.synchronize()
    waits = {}
    torch.cuda.set_sync_debug_mode("error")
    try:
        for name, action in (
            ("apply", lambda: step.bank.apply(step.hidden, step.residual, 1)),
            ("assign", lambda: step.choose()),
        ):
            try:
                action()
                waits[name] = "no"
            except RuntimeError as error:
                waits[name] = str(error).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return {"right": set(waits.values()) == {"no"}, **waits}


# --- fast -------------------------------------------------------------------------------------------------------------


def copy_bandwidth() -> dict[str, Any]:
    """GB/s of a large copy on the device, read and written: the ceiling for what only moves bytes."""
    source = torch.randn(2**29, device="cuda")
    target = torch.empty_like(source)
    seconds = timed(lambda: target.copy_(source), calls=5)
    return {"gb_s": 2 * source.nbytes / seconds / 1e9}


def timed(action: Any, *, calls: int, rounds: int = 5) -> float:
    """Seconds of one call, by events around several; the median of the rounds."""
    action()
    found = []
    for _ in range(rounds):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(calls):
            action()
        end.record()
        torch.cuda.synchronize()
        found.append(begin.elapsed_time(end) / 1e3 / calls)
    return statistics.median(found)


class Decode:
    """Decode steps of a model of so many layers: the edits of one step as one graph."""

    def __init__(self, *, rank: int = DECODE_RANK, tokens: int = max(BATCHES)) -> None:
        self.bank = Bank(
            slots=SLOTS,
            layers=tuple(range(DECODE_LAYERS)),
            rank=rank,
            width=DECODE_WIDTH,
            tokens=tokens,
            device=torch.device("cuda"),
        )
        # so little that states stay what they are over thousands of replays
        self.bank.table.normal_(std=1e-4)

    def measure(self, tokens: int, adapters: int, edited: int | None = None) -> dict[str, Any]:
        """Of `tokens` tokens `edited` are edited (all, if there are adapters at all), each by one of `adapters`."""
        edited = (tokens if adapters else 0) if edited is None else edited
        slots = torch.full((len(self.bank.token_slot),), -1, dtype=torch.int32)
        slots[:edited] = torch.arange(edited) % max(adapters, 1)
        self.bank.token_slot.copy_(slots)
        shape = (tokens, DECODE_WIDTH)
        pairs = [torch.randn(2, *shape, device="cuda", dtype=torch.bfloat16) for _ in range(2)]

        def step() -> None:
            for layer in range(DECODE_LAYERS):
                hidden, residual = pairs[layer % 2]
                self.bank.apply(hidden, residual, layer)

        step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        a_layer = timed(graph.replay, calls=10) / DECODE_LAYERS
        # hidden and residual are read and written once; each slot in use is read once
        states = edited * DECODE_WIDTH * 2 * 4
        maps = min(edited, adapters) * self.bank.table.shape[2] * DECODE_WIDTH * 4
        return {"us_a_layer": 1e6 * a_layer, "kb": (states + maps) / 1e3, "gb_s": (states + maps) / a_layer / 1e9}


def times(part: Part) -> None:
    part.attempt("copy", copy_bandwidth)
    decode_times(part)
    part.free()
    for rank in (1, 4, 16, 32, 64):
        part.attempt(f"decode, batch 64, 64 adapters, rank {rank}", rank_time, rank, needs=8)
        part.free()


def decode_times(part: Part) -> None:
    decode = Decode(tokens=8192)
    for batch in BATCHES:
        for adapters in (count for count in ADAPTERS if count <= batch):
            part.attempt(f"decode, batch {batch}, {adapters} adapters", decode.measure, batch, adapters, needs=2)
    part.attempt("prefill, 8192 tokens, none edited", decode.measure, 8192, 0, needs=2)
    part.attempt("prefill, 8192 tokens, 224 edited", decode.measure, 8192, 16, 224, needs=2)


def rank_time(rank: int) -> dict[str, Any]:
    return Decode(rank=rank).measure(64, 64)


# --- the part ---------------------------------------------------------------------------------------------------------


def problem(part: Part) -> str | None:
    """In words, why the kernel cannot run here."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if not part.cuda and os.environ.get("TRITON_INTERPRET") != "1":
        return "without a GPU the kernel needs Triton's interpreter: TRITON_INTERPRET=1"
    return None


def main(given: list[str] | None = None) -> None:
    part = Part.of_command("edit", given)
    if (why := problem(part)) is not None:
        part.skip("kernel", why)
        return part.finish()
    if part.tiny:
        # the interpreter has no bfloat16
        few = [(3, "float32", True), (8, "float16", False)]
        jobs = {name_of(*case): (*case, (96,), part.device) for case in few}
    else:
        cases = [(r, d, s) for r in RANKS for d in DTYPES for s in (True, False)]
        jobs = {name_of(*case): (*case, WIDTHS, part.device) for case in cases}
    if part.cuda:
        # first, and while nothing else computes
        part.attempt("in a captured graph", in_graph, part.device)
        part.attempt("no waiting for the device", no_waiting, part.device)
        if not part.tiny:
            times(part)
    else:
        part.skip("in a captured graph", "there is no GPU")
    # each compiles a kernel of its own: in as many processes as there are cores
    for key, found in in_processes(part, correctness, jobs, workers=1 if part.tiny else WORKERS):
        part.add(key, found)
    part.finish()


def name_of(rank: int, dtype: str, summed: bool) -> str:
    return f"rank {rank}, {dtype}, {'sum' if summed else 'plain'}"


if __name__ == "__main__":
    main()
