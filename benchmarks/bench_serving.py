"""Serving with vLLM: throughput with many adapters against vLLM alone and vLLM's own LoRA; what an adapter costs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .methods import METHODS
from .model import model_folder
from .program import run_program
from .programs.serving_engine import LORA, REFT
from .settings import Measurement, Settings
from .stats import Spread, ratios
from .tables import table

TITLE = "Serving with vLLM"
KEY = "throughput"
COUNTS = (1, 8, 64, 512)
REQUESTS, PROMPT, NEW, RANK = 32, 64, 32, 4
# of vLLM's LoRA; all requests at once fit into the slots, not all of 512 adapters
LORA_RANK, SLOTS = 8, 64
ROUNDS, LORA_EVERY = 12, 4
PLAIN, AGAIN = "vLLM alone", "vLLM alone, again"


def measure(settings: Settings, done: set[str]) -> Iterator[tuple[str, Measurement]]:
    if KEY in done:
        return
    settings.log("serving with vLLM")
    request = {
        "folder": str(model_folder(METHODS["ours"])),
        "counts": (1, 4) if settings.tiny else COUNTS,
        "requests": 4 if settings.tiny else REQUESTS,
        "prompt": PROMPT,
        "new": 4 if settings.tiny else NEW,
        "rank": RANK,
        "lora_rank": LORA_RANK,
        "slots": SLOTS,
        "lora_every": 1 if settings.tiny else LORA_EVERY,
        "alone": (PLAIN, AGAIN),
        "rounds": settings.rounds(ROUNDS),
    }
    yield KEY, run_program("serving", request, threads=settings.threads, environment_name="vllm")


def relative(measurement: Measurement, count: int) -> Spread:
    """Requests a second with so many adapters ÷ without the plug-in."""
    return to_plain(measurement, f"{REFT} {count}")


def to_plain(measurement: Measurement, name: str) -> Spread:
    """Rate ÷ that of vLLM alone in the same round, of the rounds that it took part in."""
    plain, found = measurement["seconds"][PLAIN], measurement["seconds"][name]
    both = [(a, b) for a, b in zip(plain, found, strict=True) if b is not None]
    return ratios([a for a, _ in both], [b for _, b in both])


def tables(measurements: dict[str, Measurement]) -> Iterator[str]:
    for measurement in measurements.values():
        yield explanation(measurement)
        rows = []
        for name, seconds in measurement["seconds"].items():
            taken = [s for s in seconds if s is not None]
            rows.append([name, str(len(taken)), *speeds(measurement, taken), to_plain(measurement, name).text()])
        yield table(("adapters", "rounds", "requests/s", "tokens/s", "÷ vLLM alone"), rows)
        yield (
            "To load an adapter is to read, check and send it to the worker; of LoRA, also to copy it into a slot. Its "
            "bytes in the worker's memory, in each of the slots, which are there from the start, and on disk."
        )
        rows = [adapter_row(kind, measured) for kind, measured in measurement["adapters"].items()]
        yield table(("one adapter", "load, ms", "MB", "MB of a slot", "MB on disk"), rows)


def explanation(measurement: Measurement) -> str:
    size = f"{measurement['requests']} requests of {measurement['prompt']}+{measurement['new']} tokens"
    options = ", ".join(f"`{name}` {value}" for name, value in measurement["lora_options"].items())
    versions = ", ".join(f"{package} {version}" for package, version in measurement["versions"].items())
    return (
        f"{size}, all at once, for so many adapters by turns; if there are more adapters than requests, for others in "
        f"each round. Eager, float32, no cache of prefixes; {versions}. Four engines, each with processes of its own: "
        "vLLM alone, twice, to show how much equal engines differ; "
        f"{REFT}, with the plug-in (all layers, f7+l7, r {measurement['rank']}); {LORA}, vLLM's own, without the "
        f"plug-in (all linear layers, r {measurement['lora_rank']}; {options}). On a CPU vLLM's LoRA is plain torch, "
        "which gathers the matrices of its adapter for every token; on a GPU it has kernels, so nothing follows from "
        "this for GPUs. Median and quartiles over the rounds."
    )


def speeds(measurement: Measurement, seconds: list[float]) -> list[str]:
    count, new = measurement["requests"], measurement["new"]
    return [Spread.of([count / s for s in seconds]).text(), Spread.of([count * new / s for s in seconds]).text()]


def adapter_row(kind: str, measured: dict[str, Any]) -> list[str]:
    slot = f"{measured['slot_bytes'] / 1e6:.2f}" if "slot_bytes" in measured else "–"
    load = Spread.of([1000 * seconds for seconds in measured["load_s"]]).text()
    return [kind, load, f"{measured['bytes'] / 1e6:.2f}", slot, f"{measured['disk_bytes'] / 1e6:.2f}"]
