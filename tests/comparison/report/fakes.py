"""Results of a comparison that nobody ran, with the shape and noise of real ones; the same for the same arguments.

Must not know: reports.
"""

from __future__ import annotations

import math
import random
from typing import Any

ALL = 134_515_008
# method, label, trained parameters, how well it learns (0 to 1), seconds of an epoch, learning speed
METHODS: tuple[tuple[str, str, int, float, float, float], ...] = (
    ("base", "base model", 0, 0.0, 0.0, 0.0),
    ("loreft", "LoReFT", 276_720, 0.86, 41.0, 1.4),
    ("loreft", "LoReFT l1 r4, reuse", 138_360, 0.84, 17.5, 1.5),
    ("direft", "DiReFT", 276_720, 0.82, 40.0, 1.2),
    ("noreft", "NoReFT", 276_720, 0.80, 40.5, 1.1),
    ("loreft_published", "LoReFT as published", 276_720, 0.88, 44.0, 1.6),
    ("lora", "LoRA r 8", 2_442_240, 0.87, 58.0, 1.5),
    ("lora", "LoRA at LoReFT's parameter count", 276_480, 0.83, 54.0, 1.2),
    ("dora", "DoRA", 2_564_000, 0.87, 93.0, 1.5),
    ("prefix_tuning", "prefix tuning", 184_320, 0.45, 49.0, 0.5),
    ("ia3", "(IA)³", 57_600, 0.55, 47.0, 0.7),
    ("bitfit", "BitFit", 34_560, 0.50, 46.0, 0.6),
    ("full", "full finetuning", ALL, 0.89, 71.0, 1.8),
    ("head_only", "last layer only", 3_540_096, 0.60, 30.0, 0.8),
)
TASKS: tuple[tuple[str, str, str, float, float, int], ...] = (
    ("sst2", "SST-2", "accuracy", 0.5, 0.93, 500),
    ("qnli", "QNLI", "accuracy", 0.5, 0.82, 500),
    ("cola", "CoLA", "Matthews correlation", 0.0, 0.45, 500),
    ("ARC-Easy", "ARC-Easy", "accuracy", 0.25, 0.44, 500),
)


def fake_results(
    *, methods: int = len(METHODS), tasks: int = len(TASKS), seeds: tuple[int, ...] = (42, 43, 44), kind: str = "epochs"
) -> dict[str, Any]:
    """As `results.json` holds them."""
    chosen = TASKS[:tasks]
    runs = [
        _run(method, task, seed)
        for task in chosen
        for method in METHODS[:methods]
        for seed in (seeds if method[0] != "base" else (0,))
    ]
    return {
        "title": "ReFT beside LoRA on SmolLM2-135M-Instruct",
        "command": "reftune compare results/text.yaml --output results/text --data-dir ../shared/data",
        "date": "2026-11-22",
        "hardware": "AMD EPYC 7B13, 2 cores, 16 GB; no accelerator",
        "versions": {
            "reftune": "0.1.0",
            "torch": "2.13.0",
            "transformers": "5.23.0",
            "peft": "0.21.2",
            "python": "3.11",
        },
        "model": "SmolLM2-135M-Instruct",
        "budget": {"kind": kind, "value": 2 if kind == "epochs" else 90},
        "tasks": {
            name: {"title": title, "metric": metric, "chance": chance, "train_rows": 1000, "test_rows": rows}
            for name, title, metric, chance, _, rows in chosen
        },
        "tried": [
            "On 200 held-out training rows of SST-2: learning rates 3e-4, 9e-4 and 2e-3 for LoReFT; 9e-4 was best."
        ],
        "runs": runs,
    }


def _run(
    kind: tuple[str, str, int, float, float, float], task: tuple[str, str, str, float, float, int], seed: int
) -> dict[str, Any]:
    method, label, parameters, skill, epoch, speed = kind
    name, _, metric, chance, best, rows = task
    rng = random.Random(f"{label}/{name}/{seed}")
    trains = method != "base"
    score = chance + (best - chance) * skill + rng.gauss(0, 0.008) if trains else 0.1 * chance
    half = 1.96 * math.sqrt(max(score * (1 - score), 0.004) / rows)
    seconds = 2 * epoch * rng.uniform(0.97, 1.06) if trains else None
    prepare = (seconds or 0) * 0.12 if "reuse" in label else 0.0
    return {
        "method": method,
        "label": label,
        "train_task": name,
        "seed": seed,
        "settings": {"method": method, "tasks": [name], "seed": seed, "epochs": 2, "batch_size": 16, "max_length": 512},
        "trained_parameters": parameters,
        "trained_percent": 100 * parameters / ALL,
        "train_seconds": seconds,
        "prepare_seconds": prepare if trains else None,
        "cpu_seconds": 1.9 * (seconds or 0) if trains else None,
        "steps": 126 if trains else 0,
        "epochs": 2.0 if trains else 0.0,
        "peak_memory_mb": 1900 + parameters / 2e5 + rng.uniform(0, 40),
        "adapter_bytes": 4 * parameters + (2048 if trains else 0),
        "curve": _curve(rng, skill, speed, seconds, prepare) if trains else [],
        "command": f"reftune compare results/text.yaml --only '{label}' --seed {seed}",
        "scores": {
            name: {
                "n": rows,
                "score": score,
                "low": score - half,
                "high": min(1.0, score + half),
                "metric": metric,
                "seconds": rng.uniform(11, 14),
                "unreadable": 0 if trains else round(0.9 * rows),
            }
        },
    }


def _curve(rng: random.Random, skill: float, speed: float, seconds: float | None, prepare: float) -> list[list[float]]:
    assert seconds is not None
    floor = 0.9 - 0.8 * skill
    return [
        [
            step,
            prepare + (seconds - prepare) * step / 126,
            (floor + 3 * math.exp(-speed * step / 18)) * rng.uniform(0.85, 1.2),
        ]
        for step in range(5, 127, 5)
    ]
