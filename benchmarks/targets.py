"""The targets of the benchmarks on a CPU: what was measured, what is wanted, whether it is met.

Must not know: how things are measured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import bench_generate, bench_job, bench_orthonormal, bench_ragged, bench_serving, bench_step
from .cases import ALL, MIDDLE, StepCase
from .settings import Measurement
from .stats import ratios
from .wanted import Target

Groups = dict[str, dict[str, Measurement]]
OURS, FLOOR, LORA, PYREFT = "ours", "floor, response logits", "LoRA all linear", "pyreft"


def step_ratio(over: str, under: str, case: StepCase, prompt: int) -> Callable[[Groups], float]:
    """Seconds of a step of one method ÷ of another, median of the rounds."""

    def value(groups: Groups) -> float:
        methods = groups["step"][bench_step.key(case, prompt)]["methods"]
        return ratios(methods[over]["seconds"], methods[under]["seconds"]).median

    return value


def step_memory(groups: Groups) -> float:
    methods = groups["step"][bench_step.key(ALL, 64)]["methods"]
    return methods[OURS]["peak_mb"] / methods[LORA]["peak_mb"]


def ragged(groups: Groups) -> float:
    methods = groups["ragged"][bench_ragged.KEY]["methods"]
    # what a user gets without asking; packing is in the table
    return bench_ragged.speed(methods[OURS]) / bench_ragged.speed(methods[PYREFT])


def generation(part: str) -> Callable[[Groups], float]:
    """The worse of the batch sizes."""
    return lambda groups: min(
        bench_generate.relative(groups["generate"][bench_generate.key(batch)], part).median
        for batch in bench_generate.ROUNDS
    )


def serving(count: int) -> Callable[[Groups], float]:
    return lambda groups: bench_serving.relative(groups["serving"][bench_serving.KEY], count).median


TARGETS = (
    Target(
        "step, all layers, 64+32: ÷ floor with response logits", step_ratio(OURS, FLOOR, ALL, 64), 1.03, at_most=True
    ),
    Target("step, all layers, 64+32: times as fast as pyreft", step_ratio(PYREFT, OURS, ALL, 64), 1.15),
    Target("step, all layers, 64+32: times as fast as LoRA all linear", step_ratio(LORA, OURS, ALL, 64), 1.2),
    Target("step, all layers, 64+32: peak memory ÷ LoRA all linear", step_memory, 0.8, at_most=True),
    Target("ragged commonsense rows: useful tokens/s ÷ pyreft", ragged, 1.5),
    Target("step, middle layer l1, 64+32: times as fast as pyreft", step_ratio(PYREFT, OURS, MIDDLE, 64), 4),
    Target("step, middle layer l1, 512+32: times as fast as pyreft", step_ratio(PYREFT, OURS, MIDDLE, 512), 15),
    Target(
        "ten-example job, training: times as fast as pyreft",
        lambda groups: bench_job.slower(groups["job"][bench_job.TEN]).median,
        8,
    ),
    Target("reftune demo: seconds", lambda groups: groups["job"][bench_job.DEMO]["whole_s"], 60, at_most=True),
    Target("reftune demo: right answers", lambda groups: groups["job"][bench_job.DEMO]["right"], 6),
    Target("decode: speed ÷ base", generation("decode"), 0.99),
    Target("prefill: speed ÷ base", generation("prefill"), 0.97),
    Target(
        "orthonormal rows, d 4096, r 8, 32 layers: times as fast as torch",
        lambda groups: bench_orthonormal.faster(groups["orthonormal"][bench_orthonormal.key(4096)]).median,
        200,
    ),
    Target("serving, 1 adapter: requests/s ÷ vLLM alone", serving(1), 0.97),
    Target("serving, 512 adapters: requests/s ÷ vLLM alone", serving(512), 0.97),
)


def all_targets(groups: Groups) -> list[dict[str, Any]]:
    """Each target with its value from the measurements of each group."""
    return [target.measured(groups) for target in TARGETS]
