"""`train_many`: adapters on one frozen base, one after the other in one process, sharing what none of them can change.

Must not know: the command line, tasks.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ReftuneError
from ..files import check_writable
from ..models import load_base
from ..tuner import find_stacks
from .checkpoints import only_run
from .run import RunConfig, do_run
from .shared import SharedPrefix
from .store import remove_folder

__all__ = ["ManyResult", "train_many"]

FOLDER = ".shared-prefix"


@dataclass(frozen=True)
class ManyResult:
    """What one run of several has to show; of one that failed, `error` and nothing else."""

    output: Path
    final_loss: float | None = None
    seconds: float | None = None
    steps: int | None = None
    trainable_parameters: int | None = None
    error: str | None = None


def train_many(
    runs: Sequence[RunConfig],
    *,
    overwrite: bool = False,
    reuse_limit_gb: float | None = None,
    on_done: Callable[[int, ManyResult], None] | None = None,
) -> list[ManyResult]:
    """Train adapters as `train_run` trains each, to the same numbers, with less work.

    The base model is loaded once, and what no adapter changes of an example is computed once for all that are trained
    on it (`SharedPrefix`): adapters with other layers, positions, ranks and rates on the same rows share it, those on
    rows of their own share the model.  Each is saved into its own `output`; one that fails is told and ends no other.
    `reuse_limit_gb` is the most memory for what is shared, by default half of what is free.
    `on_done(index, result)` is told of each when it is done.

    Raises:
        ReftuneError: no runs, runs on different base models or dtypes, or two with the same output.
    """
    _check_together(runs)
    base, tokenizer = load_base(runs[0].model, dtype=runs[0].dtype)
    stacks = find_stacks(base)
    sharing = [run for run in runs if run.reuse != "off"]
    shared = SharedPrefix(
        [run.reft_config() for run in sharing],
        len(stacks[0].blocks) if stacks else 0,
        folder=Path(runs[0].output) / FOLDER,
        limit_gb=reuse_limit_gb,
    )
    found: list[ManyResult] = []
    try:
        for index, run in enumerate(runs):
            result = _one(run, (base, tokenizer), shared, overwrite)
            found.append(result)
            if on_done is not None:
                on_done(index, result)
    finally:
        shared.close()
        remove_folder(shared.folder)
    return found


def _one(run: RunConfig, loaded: Any, shared: SharedPrefix, overwrite: bool) -> ManyResult:
    output = Path(run.output)
    start = time.perf_counter()
    try:
        check_writable(output)
        with only_run(output):
            result = do_run(run, run.training_arguments(), overwrite=overwrite, loaded=loaded, shared=shared)
    except (ReftuneError, ValueError) as error:
        return ManyResult(output, error=" ".join(str(error).split()))
    seconds = time.perf_counter() - start
    return ManyResult(output, result.final_loss, seconds, result.steps, result.trainable_parameters)


def _check_together(runs: Sequence[RunConfig]) -> None:
    if not runs:
        raise ReftuneError("train_many has no runs; give at least one RunConfig")
    for name in ("model", "dtype"):
        values = sorted({getattr(run, name) for run in runs})
        if len(values) > 1:
            raise ReftuneError(f"train_many trains on one base model; the runs have {name}s {', '.join(values)}")
    outputs = [os.path.abspath(run.output) for run in runs]
    twice = sorted({output for output in outputs if outputs.count(output) > 1})
    if twice:
        raise ReftuneError(f"two runs have the output {twice[0]!r}; give each a folder of its own")
