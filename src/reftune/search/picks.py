"""One of the trials of a search as a run of `reftune train`.

Must not know: Optuna; it reads `results.json` only.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ReftuneError
from ..evaluation.own import task_of
from ..files import read_json
from .rows import records_of, training_rows
from .summary import RESULTS, finalists, front, standard_error

__all__ = ["PICKS", "command_for", "pick", "run_values"]

PICKS = ("best", "smallest")


def read_search(place: Path) -> dict[str, Any]:
    """What a search has found, by its folder or its `results.json`.

    Raises:
        ReftuneError: there is none.
    """
    file = place / RESULTS if place.is_dir() else place
    if not file.is_file():
        raise ReftuneError(f"{str(place)!r} is no search: name the folder that reftune search wrote, or its {RESULTS}")
    found = read_json(file)
    if not isinstance(found, dict) or not {"trials", "front", "task"} <= set(found):
        raise ReftuneError(f"{str(file)!r} is not what reftune search writes; name the folder of a search")
    return found


def pick(found: Mapping[str, Any], which: str) -> dict[str, Any]:
    """A trial: `best` by its trainings with several seeds (else by its score), `smallest` of those that are within one
    standard error of the best score, or a number.

    Raises:
        ReftuneError: there is no such trial, or none has a score.
    """
    trials = {entry["number"]: entry for entry in found["trials"]}
    if not finalists(found["trials"], 1):
        raise ReftuneError("the search has no trial with a score yet; let it go on")
    if which == "best":
        if found["finals"]:
            return trials[found["finals"][0]["number"]]
        return trials[finalists(found["trials"], 1)[0]]
    if which == "smallest":
        best = trials[finalists(found["trials"], 1)[0]]["score"]
        enough = best - standard_error(best, found["rows"]["choose"])
        return next(entry for entry in front(found["trials"]) if entry["score"] >= enough)
    try:
        return trials[int(which)]
    except (ValueError, KeyError):
        raise ReftuneError(
            f"pick={which!r} is not valid; use {', '.join(PICKS)}, or the number of one of the {len(trials)} trials"
        ) from None


def run_values(place: Path, which: str) -> dict[str, Any]:
    """Keys of `training.RunConfig` for a trial: with all rows to train on, those that were held back among them.

    Raises:
        ReftuneError: as `pick`, or the rows are not there any more.
    """
    found = read_search(place)
    chosen, config = pick(found, which), found["config"]
    task = task_of(found["task"]["called"])
    return {
        "model": config["model"],
        "data": records_of(task, training_rows(task, found["data_dir"])),
        "max_length": config["max_length"],
        "dtype": config["dtype"],
        "seed": config["seeds"][0],
        "reft": chosen["reft"],
        "training": {
            **chosen["training"],
            "num_train_epochs": config["epochs"],
            "per_device_train_batch_size": config["batch_size"],
        },
    }


def command_for(place: Path, which: str) -> str:
    """The arguments of `reftune` that train a trial."""
    return f"train --from-search {shlex.quote(str(place))} --pick {which} --output my-adapter"
