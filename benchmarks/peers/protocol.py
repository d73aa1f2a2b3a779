"""How the driver talks to a worker: JSON lines, one request and one reply at a time; and what all workers measure.

A worker is a program that holds one model with one method on it.  It computes only when it is asked to, so that the
steps of several can be measured in turn on one machine.  Requests: `load`, `start` (all up to the end of a first step,
which warms up), `step`, `memory`, `quit`.  A worker that fails dies; its last words are on stderr.

Runs in the environments of all peers.  Must not know: reftune, peers, drivers.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

IGNORE = -100
# the variable that names the file descriptor of the replies
REPLIES = "BENCHMARK_REPLIES"
# of the base model's logits, compared between environments
FINGERPRINT_TOKENS = 16
FINGERPRINT_STRIDE = 769
# Tokens of a batch from which several models do not fit in memory together while they train.
LARGE = 2048


class Channel:
    """Requests from stdin; replies go to a pipe of their own, since libraries print to stdout."""

    def __init__(self) -> None:
        self._out = os.fdopen(int(os.environ[REPLIES]), "w", encoding="utf-8")

    def receive(self) -> dict[str, Any]:
        """The next request; a driver that is gone means quit."""
        line = sys.stdin.readline()
        return json.loads(line) if line else {"do": "quit"}

    def reply(self, **values: Any) -> None:
        self._out.write(json.dumps(values) + "\n")
        self._out.flush()


@dataclass(frozen=True)
class Case:
    """What is trained, on what.  `layers`, `first` and `last` are of no meaning to methods that edit no positions."""

    layers: list[int]
    first: int
    last: int
    rank: int
    rows: list[tuple[list[int], int]]
    """Token ids and the number of them that are prompt."""
    batch_size: int
    model: dict[str, Any]
    """{"folder": path}, or {"llama": sizes} for random weights."""
    device: str = "cpu"
    dtype: str = "float32"
    learning_rate: float = 1e-3

    @classmethod
    def of(cls, request: dict[str, Any]) -> Case:
        with Path(request["rows"]).open(encoding="utf-8") as file:
            rows = [(row["input_ids"], row["prompt_length"]) for row in json.load(file)]
        return cls(**{**request, "rows": rows})

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def positions(self) -> str:
        """As reftune spells them."""
        return "+".join([f"f{self.first}"] * (self.first > 0) + [f"l{self.last}"] * (self.last > 0))


@dataclass(frozen=True)
class Batch:
    """Rows padded on the right, on the device."""

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    prompt_lengths: list[int]
    tokens: int
    """Without the padding."""

    @classmethod
    def of(cls, rows: list[tuple[list[int], int]], device: str, padding: int = 0) -> Batch:
        width = max(len(ids) for ids, _ in rows)

        def tensor(lines: list[list[int]]) -> Tensor:
            return torch.tensor(lines, device=device)

        return cls(
            tensor([ids + [padding] * (width - len(ids)) for ids, _ in rows]),
            tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in rows]),
            tensor([[IGNORE] * n + ids[n:] + [IGNORE] * (width - len(ids)) for ids, n in rows]),
            [n for _, n in rows],
            sum(len(ids) for ids, _ in rows),
        )


class Memory:
    """Peak beyond what was held when the measurement began, in MB; of the process, or of the GPU's allocator."""

    def __init__(self, device: str) -> None:
        self.cuda = device.startswith("cuda")
        self.before = 0.0

    def begin(self) -> None:
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated() / 1e6
            return
        # the kernel then counts the peak from here on, not from the loading of the model
        Path("/proc/self/clear_refs").write_text("5")
        self.before = _status("VmRSS")

    def read(self) -> dict[str, float]:
        peak = torch.cuda.max_memory_allocated() / 1e6 if self.cuda else _status("VmHWM")
        return {"peak_mb": round(peak, 1), "before_mb": round(self.before, 1)}


def _status(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise LookupError(field)


def give_back(device: str, tokens: int) -> None:
    """Free memory goes back to the system, since the other workers need the room; not timed.

    For large batches only: after it a process pays anew for the pages that it takes.
    """
    if device == "cpu" and tokens >= LARGE and sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


@torch.no_grad()
def fingerprint(model: Any, vocabulary: int, device: str) -> list[float]:
    """A few logits of the base model at fixed tokens."""
    ids = torch.arange(FINGERPRINT_TOKENS, device=device) * 131 % vocabulary
    logits = model(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None]).logits[0, -1].float()
    return logits[::FINGERPRINT_STRIDE].tolist()


class StepWorker:
    """A plain training loop: zero_grad, forward, backward, AdamW without weight decay.

    No scheduler, no clipping, no loader: batches are made beforehand.  Subclasses build a model and know its loss.
    """

    case: Case
    model: Any
    base: Any

    def build(self) -> None:
        """Set `base`."""
        raise NotImplementedError

    def adapt(self) -> None:
        """Set `model`: `base` with the method on it; base parameters frozen."""
        raise NotImplementedError

    def loss(self, batch: Batch) -> Tensor:
        raise NotImplementedError

    def load(self, **request: Any) -> dict[str, Any]:
        torch.manual_seed(0)
        self.case = case = Case.of(request)
        self.build()
        self.base.to(case.device).eval()
        shown = fingerprint(self.base, self.base.config.vocab_size, case.device)
        return {**self.prepare(case), "fingerprint": shown}

    def prepare(self, case: Case) -> dict[str, Any]:
        """All that `load` does with a base that is there."""
        self.case = case
        self.adapt()
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = (
            torch.optim.AdamW(self.trained, lr=case.learning_rate, weight_decay=0.0) if self.trained else None
        )
        size = case.batch_size
        chunks = [case.rows[i : i + size] for i in range(0, len(case.rows), size)]
        self.batches = [Batch.of(rows, case.device) for rows in chunks]
        self.steps = 0
        self.memory_now = Memory(case.device)
        return {"parameters": sum(p.numel() for p in self.trained), "steps_an_epoch": len(chunks)}

    def start(self) -> dict[str, Any]:
        """A step on a short batch warms up the libraries; shapes of the real batches bring nothing new on a CPU."""
        rows = [(ids[: n + 2], n) for ids, n in self.case.rows[:2]]
        cuda = self.case.device.startswith("cuda")
        self.memory_now.begin()
        self._train(self.batches[0] if cuda else Batch.of(rows, self.case.device))
        return {"seconds": 0.0}

    def step(self) -> dict[str, Any]:
        batch = self.batches[self.steps % len(self.batches)]
        self.steps += 1
        synchronise(self.case.device)
        begin = time.perf_counter()
        loss = self._train(batch)
        synchronise(self.case.device)
        seconds = time.perf_counter() - begin
        reply = {"seconds": seconds, "loss": float(loss), "tokens": batch.tokens}
        give_back(self.case.device, batch.input_ids.numel())
        return reply

    def memory(self) -> dict[str, float]:
        return self.memory_now.read()

    def _train(self, batch: Batch) -> Tensor:
        if self.optimizer is not None:
            self.optimizer.zero_grad()
        loss = self.loss(batch)
        loss.backward()
        if self.optimizer is not None:
            self.optimizer.step()
        return loss.detach()


def serve(worker: Any, channel: Channel | None = None) -> None:
    """Answer requests until `quit`."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    channel = channel or Channel()
    while (request := channel.receive())["do"] != "quit":
        method = getattr(worker, request.pop("do"))
        channel.reply(**method(**request))
