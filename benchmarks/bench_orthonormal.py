"""Orthonormal rows of 32 layers, rank 8: our batched QR against `torch.nn.utils.parametrizations.orthogonal`."""

from __future__ import annotations

from collections.abc import Iterator

from .program import run_program
from .settings import Measurement, Settings
from .stats import Spread, ratios
from .tables import table

TITLE = "Orthonormal rows"
RANK, LAYERS = 8, 32
# width: (torch's evaluations, rounds)
WIDTHS = {576: (32, 5), 4096: (32, 2), 8192: (2, 1)}
TINY_WIDTHS = {64: (4, 2)}


def key(width: int) -> str:
    return f"d {width}"


def measure(settings: Settings, done: set[str]) -> Iterator[tuple[str, Measurement]]:
    for width, (evaluated, count) in (TINY_WIDTHS if settings.tiny else WIDTHS).items():
        if key(width) in done:
            continue
        settings.log(f"orthonormal rows, {key(width)}")
        request = {"width": width, "rank": RANK, "layers": LAYERS, "evaluated": evaluated}
        result = run_program("orthonormal", {**request, "rounds": settings.rounds(count)}, threads=settings.threads)
        yield key(width), {**request, **result}


def faster(measurement: Measurement) -> Spread:
    """How many times as fast as torch's."""
    return ratios(measurement["torch_s"], measurement["ours_s"])


def tables(measurements: dict[str, Measurement]) -> Iterator[str]:
    yield f"Forward and backward, rank {RANK}, {LAYERS} layers; ours in one call, torch's parametrisation one by one."
    rows = []
    for name, measurement in measurements.items():
        scaled = "" if measurement["evaluated"] == LAYERS else f", scaled from {measurement['evaluated']}"
        ms = [Spread.of([1000 * s for s in measurement[f"{who}_s"]]).text() for who in ("ours", "torch")]
        rows.append([name, ms[0], ms[1] + scaled, faster(measurement).text()])
    yield table(("", "ours, ms", "torch, ms", "times as fast"), rows)
