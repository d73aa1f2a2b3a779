"""What a job does, in numbers: hyperparameters that were left to us, what is edited, and the run that trains it.

The spec of a job is what its process is given: plain values, kept in the database, so that a job that goes on after a
restart, of another version of the flags too, is the same job.

Must not know: HTTP, the database, processes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...config import GROUP_FIELDS, ReftConfig, resolve_layers
from ...data.passes import FEW_STEPS, passes
from ...errors import DataError
from ..adapters import served_config
from ..cards import FIELDS
from ..plans import Sites
from .schemas import Hyperparameters

__all__ = ["REFT_FIELDS", "Base", "groups_told", "hyperparameters_of", "reft_of", "run_values", "sites_of"]

# Of one's own choice: what names modules or files, or switches parts off, is not for requests.
REFT_FIELDS = (*(n for n in GROUP_FIELDS if n not in ("vector", "subspaces", "active_subspaces")), "groups")
# The rates that a multiplier of 1 stands for.
RATE = 9e-4
DPO_RATE = 1e-4
BETA = 0.1
RANK = 4


@dataclass(frozen=True)
class Base:
    """What is trained on: the model that is served."""

    name: str
    """In requests."""
    path: str
    """Where it is loaded from."""
    layers: int
    width: int
    limit: int
    """Most tokens of a row."""
    dtype: str = "auto"


def hyperparameters_of(given: Hyperparameters, *, rows: int, dpo: bool) -> dict[str, Any]:
    """Numbers for what is `auto` or not given.

    Batches and epochs by the number of rows as in `reftune train`; the rate is higher where there are few steps.
    """
    batch, usual = passes(rows, batch=given.batch_size if isinstance(given.batch_size, int) else None)
    epochs = given.n_epochs if isinstance(given.n_epochs, int) else usual
    steps = math.ceil(rows / batch)
    multiplier = given.learning_rate_multiplier
    if multiplier in (None, "auto"):
        multiplier = 2.0 if steps * epochs <= 4 * FEW_STEPS else 1.0
    found: dict[str, Any] = {"n_epochs": epochs, "batch_size": batch, "learning_rate_multiplier": multiplier}
    if dpo:
        found["beta"] = BETA if given.beta in (None, "auto") else given.beta
    return found


def reft_of(given: Mapping[str, Any] | None, base: Base, tokenizer: Any) -> dict[str, Any]:
    """The fields of `ReftConfig` with which a job trains, those filled in that were not given; checked.

    By default, rank 4 on the last prompt token, which decides how an answer begins, and on the answer, in the upper two
    thirds of the layers: what lies below is computed once for each row.

    Raises:
        DataError: a field is unknown, not valid, more than is served, or not for this model.
    """
    given = dict(given or {})
    if unknown := sorted(set(given) - set(REFT_FIELDS)):
        raise DataError(f"reft has unknown fields {', '.join(map(ascii, unknown))[:200]}; valid are {_listed()}")
    values: dict[str, Any] = {"r": RANK, "layers": list(range(base.layers // 3, base.layers)), **given}
    if "positions" not in given and "groups" not in given:
        values["groups"] = [{"positions": "l1"}, {"positions": "response"}]
    try:
        config = served_config({**values, "task_type": "CAUSAL_LM"}, tokenizer)
        for group in config.resolved_groups():
            resolve_layers(group.layers or "all", base.layers)
            if group.r > base.width:
                raise ValueError(f"r={group.r} is more than the width of this model's hidden states, {base.width}")
    except ValueError as error:
        raise DataError(f"reft is not valid: {error}") from error
    # texts by their ids, so that the job does not depend on how they are read later
    if "positions" in values:
        values["positions"] = config.positions
    if config.groups is not None:
        values["groups"] = config.groups
    return values


def _listed() -> str:
    return ", ".join(sorted(REFT_FIELDS))


def groups_told(reft: Mapping[str, Any], base: Base) -> list[dict[str, Any]]:
    """Of each group what it edits and by what, layers as numbers of blocks."""
    groups = ReftConfig(**reft).resolved_groups()
    told = [{name: getattr(group, name) for name in FIELDS} for group in groups]
    for group in told:
        group["layers"] = resolve_layers(group["layers"] or "all", base.layers)
    return told


def sites_of(reft: Mapping[str, Any], base: Base) -> Sites:
    """Of each block that is edited, its groups; blocks that have the same ones stand for each other."""
    groups = ReftConfig(**reft).resolved_groups()
    layers = [set(resolve_layers(group.layers or "all", base.layers)) for group in groups]
    # parts of a block that groups edit stand apart, as their positions are counted apart
    places = {(layer, group.component): None for group, at in zip(groups, layers, strict=True) for layer in sorted(at)}
    of_places = [
        tuple(
            (number, group.positions, group.tie)
            for number, (group, at) in enumerate(zip(groups, layers, strict=True))
            if layer in at and group.component == component
        )
        for layer, component in places
    ]
    return tuple(dict.fromkeys(of_places))


def run_values(spec: Mapping[str, Any], *, files: Path, output: Path) -> dict[str, Any]:
    """What `RunConfig` is made of.  `files`: where the training files lie."""
    chosen = spec["hyperparameters"]
    dpo = spec["type"] == "dpo"
    training = {
        "num_train_epochs": chosen["n_epochs"],
        "per_device_train_batch_size": chosen["batch_size"],
        "learning_rate": (DPO_RATE if dpo else RATE) * chosen["learning_rate_multiplier"],
        "logging_steps": 1,
        # by the clock: see `work`
        "save_strategy": "no",
        "save_total_limit": 2,
        "disable_tqdm": True,
    }
    values: dict[str, Any] = {
        "model": spec["base"],
        "data": str(files / spec["training"]["blob"]),
        "output": str(output),
        "max_length": spec["max_length"],
        "seed": spec["seed"],
        "dtype": spec["dtype"],
        "reft": spec["reft"],
    }
    if spec["device"] == "cpu":
        training["use_cpu"] = True
    if spec["validation"] is not None:
        values["eval_data"] = str(files / spec["validation"]["blob"])
        training["eval_strategy"] = "epoch"
    return {**values, "training": training}
