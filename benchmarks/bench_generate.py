"""Generation with an adapter on all layers (f7+l7) against the bare model: prefill and decode, tokens a second."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .methods import METHODS
from .model import model_folder
from .program import run_program
from .settings import Measurement, Settings
from .stats import Spread, ratios
from .tables import table

TITLE = "Generation"
PROMPT, NEW = 128, 24
# batch size: rounds
ROUNDS = {1: 50, 8: 20}


def key(batch: int) -> str:
    return f"batch {batch}"


def measure(settings: Settings, done: set[str]) -> Iterator[tuple[str, Measurement]]:
    for batch, count in ROUNDS.items():
        if key(batch) in done:
            continue
        settings.log(f"generation, {key(batch)}")
        request = {
            "folder": str(model_folder(METHODS["ours"])),
            "batch": batch,
            "prompt": PROMPT,
            "new": NEW,
            "rounds": settings.rounds(count),
            "variants": [{"name": "base", "adapters": 0}, {"name": "ours", "adapters": 1}],
        }
        yield key(batch), {"batch": batch, **run_program("generate", request, threads=settings.threads)}


def relative(measurement: Measurement, part: str) -> Spread:
    """Speed with the adapter ÷ speed of the bare model."""
    variants = measurement["variants"]
    return ratios(variants["base"][f"{part}_s"], variants["ours"][f"{part}_s"])


def tables(measurements: dict[str, Measurement]) -> Iterator[str]:
    yield (
        f"Prompts of {PROMPT} tokens, {NEW} new tokens, greedy, with the cache. Prefill is the time to the first new "
        "token, decode the mean of the others; median and quartiles over the rounds."
    )
    rows = []
    for name, measurement in measurements.items():
        for part, tokens in (("prefill", measurement["batch"] * PROMPT), ("decode", measurement["batch"])):
            rows.append([f"{part}, {name}", *speeds(measurement, part, tokens), relative(measurement, part).text()])
    yield table(("", "base, tokens/s", "with adapter, tokens/s", "speed ÷ base"), rows)


def speeds(measurement: dict[str, Any], part: str, tokens: int) -> list[str]:
    variants = measurement["variants"]
    return [Spread.of([tokens / s for s in variants[name][f"{part}_s"]]).text() for name in ("base", "ours")]
