"""What is measured on what: cases, random rows, the ten examples, files of rows for the workers.

Must not know: methods, torch.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SEED = 7
VOCABULARY = 49152
LAYERS = 30
RANK = 4
BATCH = 8
RESPONSE = 32
# so many different batches: the same one again and again would be kinder to the caches than training is
BATCHES = 4
PROMPTS = (64, 256, 512)

Row = tuple[list[int], int]
"""Token ids, and how many of them are the prompt."""


@dataclass(frozen=True)
class StepCase:
    """Where is edited."""

    name: str
    layers: tuple[int, ...]
    first: int
    last: int
    rank: int = RANK


ALL = StepCase("all layers, f7+l7", tuple(range(LAYERS)), 7, 7)
FOUR = StepCase("4 layers, f7+l7", (3, 9, 18, 24), 7, 7)
MIDDLE = StepCase("middle layer, l1", (15,), 0, 1)
STEP_CASES = (ALL, FOUR, MIDDLE)


def random_rows(
    prompt: int, *, count: int = BATCH * BATCHES, response: int = RESPONSE, vocabulary: int = VOCABULARY
) -> list[Row]:
    """Rows of one length, the same for whoever asks."""
    generator = random.Random(f"{SEED}/{prompt}/{response}/{vocabulary}")
    # the first ids are special tokens
    return [([generator.randrange(32, vocabulary) for _ in range(prompt + response)], prompt) for _ in range(count)]


def write_rows(rows: Sequence[Row], file: Path) -> Path:
    """As workers read them."""
    file.write_text(json.dumps([{"input_ids": ids, "prompt_length": prompt} for ids, prompt in rows]))
    return file


def request(
    case: StepCase, rows: Path, model: dict[str, Any], *, batch_size: int = BATCH, learning_rate: float = 1e-3
) -> dict[str, Any]:
    """The request `load` of a worker."""
    return {
        "layers": list(case.layers),
        "first": case.first,
        "last": case.last,
        "rank": case.rank,
        "rows": str(rows),
        "model": model,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
    }
