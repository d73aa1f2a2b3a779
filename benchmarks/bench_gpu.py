"""The step times on an accelerator: Llama shapes of 1B and 8B with random weights, bf16, batch 16 × 512.

Timing does not depend on weights.  `--tiny --device cpu` runs the same on a toy shape, to see that it runs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import bench_step
from .cases import ALL, random_rows, request, write_rows
from .interleave import interleaved
from .methods import METHODS
from .settings import Measurement, Settings
from .tables import table

TITLE = "Training steps on an accelerator"
NAMES = ("ours", "floor, response logits", "floor, all logits", "LoRA all linear")
RESPONSE = 32
ROUNDS = 7
BATCH, LENGTH = 16, 512
# as Llama 3's
COMMON = {"num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192, "rope_theta": 500000.0}
SHAPES: dict[str, dict[str, Any]] = {
    "1B": {
        **COMMON,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "tie_word_embeddings": True,
    },
    "8B": {
        **COMMON,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
}
TINY: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
}
TINY_BATCH, TINY_LENGTH = 4, 64


def key(name: str) -> str:
    return f"{name} shape"


def measure(settings: Settings, done: set[str]) -> Iterator[tuple[str, Measurement]]:
    for name, shape in ({"tiny": TINY} if settings.tiny else SHAPES).items():
        if key(name) not in done:
            settings.log(key(name))
            yield key(name), measure_shape(settings, shape)


def measure_shape(settings: Settings, shape: dict[str, Any]) -> Measurement:
    batch, length = (TINY_BATCH, TINY_LENGTH) if settings.tiny else (BATCH, LENGTH)
    prompt = length - RESPONSE
    case = replace(ALL, layers=tuple(range(shape["num_hidden_layers"])))
    with tempfile.TemporaryDirectory() as folder:
        rows = random_rows(prompt, count=2 * batch, response=RESPONSE, vocabulary=shape["vocab_size"])
        file = write_rows(rows, Path(folder) / "rows.json")
        given = {
            **request(case, file, {"llama": shape}, batch_size=batch),
            "device": settings.device,
            "dtype": "float32" if settings.device == "cpu" else "bfloat16",
        }
        jobs = [(METHODS[name], given) for name in NAMES]
        measured = interleaved(settings, jobs, settings.rounds(ROUNDS))
    return {"shape": shape, "device": settings.device, "batch": batch, "length": length, "methods": measured}


def tables(measurements: dict[str, Measurement]) -> Iterator[str]:
    yield "Random weights, all layers f7+l7, rank 4. Peak memory is that of the accelerator's allocator."
    for name, measurement in measurements.items():
        methods = measurement["methods"]
        yield f"### {name}, batch {measurement['batch']} × {measurement['length']}, {measurement['device']}"
        rows = [bench_step.method_row(method, row, methods["ours"]) for method, row in methods.items()]
        yield table(bench_step.HEAD, rows)
