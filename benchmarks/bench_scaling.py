"""How our cost grows: with the prompt, the number of layers, the rank, the number of adapters in a mixed batch."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from .cases import ALL, BATCH, LAYERS, RESPONSE, StepCase, random_rows, request, write_rows
from .interleave import Job, interleaved
from .methods import METHODS, Method
from .model import model_folder
from .program import run_program
from .settings import Measurement, Settings
from .stats import Spread, ratios
from .tables import table

TITLE = "How the cost grows"
FLOOR = METHODS["floor, response logits"]
# prompt: rounds
PROMPTS = {32: 3, 64: 3, 128: 3, 256: 2, 512: 1}
COUNTS = (1, 4, 8, 15, LAYERS)
RANKS = (1, 4, 16, 64)
ADAPTERS = (1, 2, 4, 8)
ADAPTER_ROUNDS = 5
ADAPTER_PROMPT = 128
PROMPT = 64


def measure(settings: Settings, done: set[str]) -> Iterator[tuple[str, Measurement]]:
    for prompt, count in PROMPTS.items():
        if f"prompt {prompt}" not in done:
            yield f"prompt {prompt}", steps(settings, {str(prompt): ALL}, prompt, count)
    sweeps = {
        "layers": {str(n): replace(ALL, layers=spread(n)) for n in COUNTS},
        "rank": {str(r): replace(ALL, rank=r) for r in RANKS},
    }
    for name, cases in sweeps.items():
        if name not in done:
            yield name, steps(settings, cases, PROMPT, 3)
    if "adapters" not in done:
        yield "adapters", mixtures(settings)


def spread(count: int) -> tuple[int, ...]:
    """So many layers at even distances, from the first on: what is frozen before the first edit is not what grows."""
    return tuple(i * LAYERS // count for i in range(count))


def steps(settings: Settings, cases: dict[str, StepCase], prompt: int, count: int) -> Measurement:
    """Ours in several cases, and the floor, in turn."""
    settings.log(f"cost by {', '.join(cases)}")
    with tempfile.TemporaryDirectory() as folder:
        rows = write_rows(random_rows(prompt), Path(folder) / "rows.json")
        model = {"folder": str(model_folder(FLOOR))}
        jobs: list[Job] = [(FLOOR, request(ALL, rows, model))]
        jobs += [(renamed(name), request(case, rows, model)) for name, case in cases.items()]
        measured = interleaved(settings, jobs, settings.rounds(count))
    return {"prompt": prompt, "batch": BATCH, "methods": measured}


def renamed(name: str) -> Method:
    return replace(METHODS["ours"], name=name)


def mixtures(settings: Settings) -> Measurement:
    """Prefill with several adapters in one batch."""
    settings.log("cost by adapters")
    variants = [{"name": "base", "adapters": 0}, *({"name": str(n), "adapters": n} for n in ADAPTERS)]
    sizes = {"batch": BATCH, "prompt": ADAPTER_PROMPT, "new": 1, "rounds": settings.rounds(ADAPTER_ROUNDS)}
    request = {"folder": str(model_folder(FLOOR)), "variants": variants, **sizes}
    return {**sizes, **run_program("generate", request, threads=settings.threads)}


def tables(measurements: dict[str, Measurement]) -> Iterator[str]:
    yield (
        f"Steps of batch {BATCH}, all layers f7+l7, rank {ALL.rank}, {PROMPT}+{RESPONSE} tokens, unless the row says "
        "otherwise. The floor is that with response-only logits."
    )
    rows: list[list[str]] = []
    for name, measurement in measurements.items():
        if name != "adapters":
            label = "prompt tokens" if name.startswith("prompt") else name
            rows.extend(step_row(f"{label}: {case}", measurement, case) for case in cases_of(measurement))
    yield table(("", "s", "÷ floor", "peak MB"), rows)
    if "adapters" in measurements:
        yield from adapter_tables(measurements["adapters"])


def cases_of(measurement: Measurement) -> list[str]:
    return [name for name in measurement["methods"] if name != FLOOR.name]


def step_row(label: str, measurement: Measurement, case: str) -> list[str]:
    row, floor = measurement["methods"][case], measurement["methods"][FLOOR.name]
    if "error" in row or "error" in floor:
        return [label, f"failed: {row.get('error') or floor.get('error')}", "", ""]
    relative = ratios(row["seconds"], floor["seconds"]).text()
    return [label, Spread.of(row["seconds"]).text(), relative, f"{row['peak_mb']:,.0f}"]


def adapter_tables(measurement: dict[str, Any]) -> Iterator[str]:
    yield f"Prefill of a batch of {measurement['batch']} prompts of {measurement['prompt']} tokens, adapters by turns:"
    base = measurement["variants"]["base"]["prefill_s"]
    rows = [
        [name, Spread.of(variant["prefill_s"]).text(), ratios(variant["prefill_s"], base).text()]
        for name, variant in measurement["variants"].items()
    ]
    yield table(("adapters in the batch", "s", "÷ base"), rows)
