"""Forward and backward of orthonormal rows: ours for all layers at once, torch's parametrisation one layer at a time.

Request: `width`, `rank`, `layers`, `evaluated` (torch's evaluations; the result is scaled to `layers`), `rounds`.

One module of torch's is evaluated again and again in place of one a layer: the work is the same, and making each costs
a full QR of width × width.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from reftune.interventions.orthonormal import orthonormal_rows

# ours is short: so many evaluations make one round
REPEATS = 5


def ours(raw: torch.Tensor, weight: torch.Tensor) -> float:
    begin = time.perf_counter()
    raw.grad = None
    (orthonormal_rows(raw) * weight).sum().backward()
    return time.perf_counter() - begin


def torchs(module: torch.nn.Module, weight: torch.Tensor) -> float:
    begin = time.perf_counter()
    module.zero_grad()
    (module.weight * weight).sum().backward()
    return time.perf_counter() - begin


def main(request: dict[str, Any]) -> dict[str, Any]:
    torch.manual_seed(0)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    width, rank, layers, evaluated = (request[name] for name in ("width", "rank", "layers", "evaluated"))
    raw = torch.randn(layers, rank, width, requires_grad=True)
    weights = torch.randn(layers, rank, width)
    module = torch.nn.utils.parametrizations.orthogonal(torch.nn.Linear(width, rank, bias=False))
    ours(raw, weights), torchs(module, weights[0])
    result: dict[str, Any] = {"ours_s": [], "torch_s": []}
    for _ in range(request["rounds"]):
        result["ours_s"].append(statistics.median(ours(raw, weights) for _ in range(REPEATS)))
        total = sum(torchs(module, weights[i % layers]) for i in range(evaluated))
        result["torch_s"].append(total * layers / evaluated)
    return result


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
