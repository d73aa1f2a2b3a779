"""Time and peak memory of a training step, all methods in turn: cases × prompt lengths.

Each method and case has a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from .cases import (
    ALL,
    BATCH,
    BATCHES,
    FOUR,
    MIDDLE,
    PROMPTS,
    RESPONSE,
    STEP_CASES,
    StepCase,
    random_rows,
    request,
    write_rows,
)
from .interleave import interleaved
from .methods import METHODS, Method
from .model import model_folder
from .settings import Measurement, Settings
from .stats import Spread, ratios, rounded
from .tables import table

TITLE = "Training steps"
OURS, OURS_PLAIN, FLOOR = "ours", "ours, reuse off", "floor, response logits"
NAMES = {
    ALL: (OURS, FLOOR, "floor, all logits", "pyreft", "AdapterHub", "LoRA all linear", "LoRA o_proj"),
    FOUR: (OURS, FLOOR, "pyreft", "AdapterHub"),
    MIDDLE: (OURS, FLOOR, "pyreft", "AdapterHub"),
}
ROUNDS = {64: 5, 256: 3, 512: 2}
# under three minutes on two cores
QUICK_ROUNDS = {64: 3, 512: 1}
QUICK_CASES = {64: STEP_CASES, 512: (MIDDLE,)}
HEAD = ("method", "s", "÷ ours", "peak MB", "of these for training", "trained", "loss", "preparation, s")


def key(case: StepCase, prompt: int) -> str:
    return f"{case.name}, {prompt}+{RESPONSE}"


def measure(settings: Settings, done: set[str]) -> Iterator[tuple[str, Measurement]]:
    """A measurement for each case and prompt length that is not done."""
    if settings.quick:
        yield from measure_quickly(settings)
        return
    for prompt in PROMPTS:
        for case in STEP_CASES:
            if key(case, prompt) not in done:
                settings.log(key(case, prompt))
                jobs = [(method, case) for method in settings.methods(methods_of(case, prompt))]
                yield key(case, prompt), entry(case, prompt, measured(settings, jobs, prompt, ROUNDS[prompt]))


def measure_quickly(settings: Settings) -> Iterator[tuple[str, Measurement]]:
    """Ours in all cases beside one floor, on one batch: models are loaded once a prompt length."""
    for prompt, count in QUICK_ROUNDS.items():
        cases = QUICK_CASES[prompt]
        settings.log(f"{prompt}+{RESPONSE}: {'; '.join(case.name for case in cases)}")
        floor = METHODS[FLOOR]
        jobs = [(floor, ALL), *((replace(METHODS[OURS], name=case.name), case) for case in cases)]
        rows = measured(settings, jobs, prompt, count, batches=1)
        for case in cases:
            yield key(case, prompt), entry(case, prompt, {OURS: rows[case.name], FLOOR: rows[FLOOR]})


def methods_of(case: StepCase, prompt: int) -> tuple[str, ...]:
    return (*NAMES[case], *((OURS_PLAIN,) if case is MIDDLE and prompt == PROMPTS[0] else ()))


def measured(
    settings: Settings, jobs: list[tuple[Method, StepCase]], prompt: int, count: int, batches: int = BATCHES
) -> dict[str, Any]:
    """Rows of these methods on these cases."""
    with tempfile.TemporaryDirectory() as folder:
        rows = write_rows(random_rows(prompt, count=BATCH * batches), Path(folder) / "rows.json")
        given = [(method, request(case, rows, {"folder": str(model_folder(method))})) for method, case in jobs]
        return interleaved(settings, given, settings.rounds(count))


def entry(case: StepCase, prompt: int, methods: dict[str, Any]) -> Measurement:
    return {"case": case.name, "prompt": prompt, "response": RESPONSE, "batch": BATCH, "methods": methods}


def tables(measurements: dict[str, Measurement]) -> Iterator[str]:
    """A table for each case and prompt length."""
    yield (
        "Seconds of a step (forward, backward, AdamW; ours: all that `ReftTrainer.train()` does for a step), median "
        "and quartiles, or extremes below four rounds; ÷ ours is the ratio within a round. Peak memory is that of the "
        "process, and what of it came after the model was loaded. Preparation is what ours does once: "
        "the time from the call of `train()` to the end of the first step, less that of a median step."
    )
    for name, measurement in measurements.items():
        yield f"### {name} tokens, batch {measurement['batch']}"
        yield table(
            HEAD,
            [method_row(method, row, measurement["methods"]["ours"]) for method, row in measurement["methods"].items()],
        )


def method_row(method: str, row: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    if "error" in row or not row.get("seconds"):
        return [method, f"failed: {row.get('error', 'not measured')}", *[""] * 6]
    relative = ratios(row["seconds"], ours["seconds"]).text() if "error" not in ours else "–"
    # the floor trains nothing: its loss only changes with the batch
    losses = f"{row['losses'][0]:.3f} → {row['losses'][-1]:.3f}" if row["parameters"] else "–"
    return [
        method,
        Spread.of(row["seconds"]).text(),
        relative,
        f"{row['peak_mb']:,.0f}",
        f"{row['peak_mb'] - row['before_mb']:,.0f}",
        f"{row['parameters']:,}",
        losses,
        preparation(row),
    ]


def preparation(row: dict[str, Any]) -> str:
    """Seconds of the first step beyond those of a median step; the plain loops of the others have none."""
    return rounded(max(0.0, row["start"] - Spread.of(row["seconds"]).median), 2) if row["start"] else "–"
