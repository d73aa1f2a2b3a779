"""A search: trials until the budget is spent, then the best of them again with several seeds, on other rows.

Must not know: the command line, what a report looks like.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import ReftuneError
from ..evaluation.tasks.base import Task
from ..files import check_writable, key_of, read_json, write_json, write_lines
from ..models import check_model, fingerprint, refuse_encoder
from .bench import Bench, Diverged
from .budget import Budget
from .gated import FILE as GATED
from .gated import gated_layers, with_layers
from .rows import SearchRows, rows_of_search
from .settings import SearchConfig
from .study import FILE as STUDY
from .study import SearchStudy, check_optuna, locked, opened
from .summary import RESULTS, finalists, results_of

__all__ = ["search"]

# Trials that fail one after the other before anything has worked, until the search is given up.
HOPELESS = 5

Say = Callable[[str, dict[str, Any]], None]
"""(what, entry): gating, gated; of a trial begun, done, stopped, failed, left; of a finalist final, kept"""


def search(
    config: SearchConfig,
    output: Path,
    *,
    data_dir: str | None = None,
    command: str = "",
    say: Say | None = None,
) -> dict[str, Any]:
    """Do trials until the budget is spent, and write `results.json` after each.

    Started again with the same output it goes on; several processes with the same output share the study.

    Raises:
        ReftuneError: the output is of another search, there is no such model, or nothing works.
        DataError: a file is missing, or it has too few rows.
    """
    check_optuna()
    check_writable(output)
    task, space = config.parsed_task(), config.parsed_space()
    refuse_encoder(config.model, check_model(config.model))
    rows = rows_of_search(
        task, held_out=config.held_out, train_rows=config.train_rows, seed=config.seed, data_dir=data_dir
    )
    made_from = {
        **config.trial_settings,
        "rows": rows.key,
        "model_files": key_of(fingerprint(config.model)),
        "space": {name: list(value) for name, value in asdict(space).items()},
    }
    said = {"command": command, "data_dir": data_dir}
    tell = say or (lambda what, entry: None)
    first: list[dict[str, Any]] = []
    if config.gates:
        found = _gated(config, task, rows, output, tell)
        space = with_layers(space, found)
        made_from["gates"] = key_of(found)
        first = [{**start, "layers": found["layers"]} for start in space.starts()[:2]]
    with opened(
        output, made_from=made_from, space=space, sampler=config.sampler, seed=config.seed, first=first
    ) as study:
        work = study.work_folder()
        try:
            with Bench(config, task, rows, folder=work, space=space) as bench:
                searcher = _Search(config, study, bench, rows, output, said, tell)
                searcher.trials()
                return searcher.finals()
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _gated(config: SearchConfig, task: Task, rows: SearchRows, output: Path, tell: Say) -> dict[str, Any]:
    """What gates have left, from the output if it was found before; one process finds it, others wait for it."""
    output.mkdir(parents=True, exist_ok=True)
    with locked(output / ".gates"):
        if not (output / GATED).is_file():
            if (output / STUDY).is_file():
                raise ReftuneError(f"{str(output)!r} holds a search without gates: name another --output")
            tell("gating", {})
            with (
                tempfile.TemporaryDirectory(dir=output, prefix=".gating.") as work,
                Bench(config, task, rows, folder=Path(work)) as bench,
            ):
                write_json(output / GATED, gated_layers(bench, seed=config.seeds[0]))
        found = dict(read_json(output / GATED))
    tell("gated", found)
    return found


class _Search:
    """One process of a search."""

    def __init__(
        self,
        config: SearchConfig,
        study: SearchStudy,
        bench: Bench,
        rows: SearchRows,
        output: Path,
        said: dict[str, Any],
        tell: Say,
    ) -> None:
        self.config, self.study, self.bench, self.rows = config, study, bench, rows
        self.output, self.said, self.tell = output, said, tell
        self.budget = Budget.of(config.budget)

    def write(self) -> dict[str, Any]:
        """`results.json` as things are now."""
        found = results_of(self.config, self.study, self.bench, self.rows, self.output, **self.said)
        write_json(self.output / RESULTS, found)
        return found

    # --- trials -----------------------------------------------------------------------------------------------------

    def trials(self) -> None:
        failed: list[str] = []
        while not self._is_spent():
            trial = self.study.next_trial(self.budget)
            if trial is None:
                break
            error = self._trial(trial)
            self.study.note_time()
            found = self.write()
            failed = [] if error is None else [*failed, error]
            if len(failed) >= HOPELESS and not any(entry["score"] is not None for entry in found["trials"]):
                raise ReftuneError(f"the first {len(failed)} trials failed, the last with: {failed[-1]}")

    def _is_spent(self) -> bool:
        if self.budget.seconds is None:
            return False
        spent, trials = self.study.seconds(), self.study.trials()
        took = [t.user_attrs["seconds"] for t in trials if t.values is not None and "seconds" in t.user_attrs]
        # one trial at least, however short the time
        if not took:
            return bool(trials) and spent >= self.budget.seconds
        reserve = statistics.median(took) * self.config.finalists * len(self.config.seeds)
        return spent + min(reserve, self.budget.seconds / 2) >= self.budget.seconds

    def _trial(self, trial: Any) -> str | None:
        """The error, if it failed."""
        study, start = self.study, time.perf_counter()
        chosen = study.space.suggest(trial)
        trial.set_user_attr("chosen", chosen)
        entry: dict[str, Any] = {"number": trial.number, "chosen": chosen}
        self.tell("begun", entry)

        def on_size(parameters: int) -> None:
            entry["parameters"] = parameters
            trial.set_user_attr("parameters", parameters)

        try:
            outcome = self.bench.run(
                chosen,
                seed=self.config.seeds[0],
                ask=lambda rung, loss: study.is_to_stop(trial, rung, loss),
                on_size=on_size,
            )
        except (ReftuneError, ValueError, RuntimeError, MemoryError) as error:
            # a device that is out of memory is a RuntimeError of torch
            why = " ".join(str(error).split()) or type(error).__name__
            trial.set_user_attr("seconds", time.perf_counter() - start)
            study.failed(trial, why)
            self.tell("failed", {**entry, "error": why, "diverged": isinstance(error, Diverged)})
            return why
        entry |= {"score": outcome.score, "loss": outcome.loss, "seconds": time.perf_counter() - start}
        for name in ("loss", "seconds"):
            trial.set_user_attr(name, entry[name])
        trial.set_user_attr("steps", outcome.steps)
        if outcome.score is None:
            study.stopped(trial)
            self.tell("stopped", entry)
            return None
        study.done(trial, outcome.score, entry["parameters"])
        self.tell("done", entry)
        return None

    # --- the best again ---------------------------------------------------------------------------------------------

    def finals(self) -> dict[str, Any]:
        """Train the best with every seed, and score them by generated answers to rows that did not choose them.

        While another process is at a trial, which may be among the best, that is left to it.
        """
        found = self.write()
        if self.study.others_at_work():
            return found
        with self.study.alone():
            for number in finalists(found["trials"], self.config.finalists):
                chosen = next(entry["chosen"] for entry in found["trials"] if entry["number"] == number)
                for seed in self.config.seeds:
                    self._final(number, chosen, seed)
                    found = self.write()
        self.study.note_time()
        return self.write()

    def _final(self, number: int, chosen: dict[str, Any], seed: int) -> None:
        folder = self.output / "finals" / f"trial-{number}-seed-{seed}"
        entry: dict[str, Any] = {"number": number, "seed": seed, "chosen": chosen}
        if (folder / "result.json").is_file():
            self.tell("kept", {**entry, **read_json(folder / "result.json")})
            return
        start = time.perf_counter()
        try:
            outcome = self.bench.run(chosen, seed=seed, save=folder / "adapter", tells=True)
        except (ReftuneError, ValueError, RuntimeError) as error:
            self.tell("failed", {**entry, "error": " ".join(str(error).split())})
            return
        assert outcome.result is not None
        write_lines(folder / "answers.jsonl", outcome.result.examples)
        result = {**outcome.result.summary(), "loss": outcome.loss, "seconds": time.perf_counter() - start}
        write_json(folder / "result.json", result)
        self.tell("final", {**entry, **result})
