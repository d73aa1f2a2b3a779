"""Serving with vLLM: throughput with many adapters against vLLM without the plug-in, and what an adapter costs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .methods import METHODS
from .model import model_folder
from .program import run_program
from .settings import Measurement, Settings
from .stats import Spread, ratios
from .tables import table

TITLE = "Serving with vLLM"
KEY = "throughput"
COUNTS = (1, 8, 64, 512)
REQUESTS, PROMPT, NEW, RANK = 32, 128, 32, 4
ROUNDS = 5
PLAIN = "vLLM alone"


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
        "rounds": settings.rounds(ROUNDS),
    }
    yield KEY, run_program("serving", request, threads=settings.threads, environment_name="vllm")


def relative(measurement: Measurement, count: int) -> Spread:
    """Requests a second with so many adapters ÷ without the plug-in."""
    seconds = measurement["seconds"]
    return ratios(seconds[PLAIN], seconds[str(count)])


def tables(measurements: dict[str, Measurement]) -> Iterator[str]:
    for measurement in measurements.values():
        size = f"{measurement['requests']} requests of {measurement['prompt']}+{measurement['new']} tokens"
        yield (
            f"{size}, all at once, adapters by turns (all layers, f7+l7, r {RANK}), eager, float32, no cache of "
            "prefixes; 0 adapters: the plug-in alone. Median and quartiles over the rounds."
        )
        rows = []
        for name, seconds in measurement["seconds"].items():
            rows.append([name, *speeds(measurement, seconds), ratios(measurement["seconds"][PLAIN], seconds).text()])
        yield table(("adapters", "requests/s", "tokens/s", "÷ vLLM alone"), rows)
        middle, low, high = measurement["load_s"]
        yield (
            f"To read, check and load an adapter takes {1000 * middle:.0f} ms ({1000 * low:.0f} to {1000 * high:.0f}); "
            f"it has {measurement['bytes'] / 1e6:.2f} MB in a worker and {measurement['disk_bytes'] / 1e6:.2f} on disk."
        )


def speeds(measurement: dict[str, Any], seconds: list[float]) -> list[str]:
    count, new = measurement["requests"], measurement["new"]
    return [Spread.of([count / s for s in seconds]).text(), Spread.of([count * new / s for s in seconds]).text()]
