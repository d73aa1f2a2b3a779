"""The first stage of a search, if it is asked for: one training with gates, which says which layers are worth trying.

Must not know: how trials are chosen, the command line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from transformers import set_seed

from ..config import ReftConfig
from ..errors import ReftuneError
from ..training.gates import Gates
from ..training.shared import adapted
from .bench import Bench
from .space import Space

__all__ = ["FILE", "PENALTY", "gated_layers", "with_layers"]

FILE = "gates.json"
# What the whole adapter costs, in nats of the loss.
PENALTY = 0.5
# One group at each end of the prompt: which of them is needed is chosen together with the layers.
GROUPS = ({"positions": "f3"}, {"positions": "l7"})
RANK, RATE = 8, 1e-3


def with_layers(space: Space, found: Mapping[str, Any]) -> Space:
    """The space with the layers that gates have left, as its first choice."""
    layers = found["layers"]
    return space if layers in space.layers else replace(space, layers=(layers, *space.layers))


def gated_layers(bench: Bench, *, seed: int) -> dict[str, Any]:
    """What one training with gates has left.

    Raises:
        ReftuneError: all gates are closed.
    """
    set_seed(seed)
    config = ReftConfig(r=RANK, groups=[dict(group) for group in GROUPS], positions="f3+l7", task_type="CAUSAL_LM")
    with adapted(bench.base, config) as model:
        gates = Gates(model, penalty=PENALTY)
        trainer = bench.trainer(model, {"learning_rate": RATE, "warmup": 0.0}, seed, gates=gates)
        trainer.train()
        rows = gates.rows()
        gates.close()
    layers = sorted({row["layer"] for row in rows if row["value"] > 0})
    if not layers:
        raise ReftuneError("the gates have left no layer: search without --gates")
    return {
        "layers": ";".join(map(str, layers)),
        "penalty": PENALTY,
        "steps": trainer.state.global_step,
        "gates": [{key: row[key] for key in ("layer", "positions", "value", "open")} for row in rows],
    }
