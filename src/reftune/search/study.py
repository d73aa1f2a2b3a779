"""Optuna's study in a file that several processes share: who works on it, what it is of, when a trial is stopped.

The file is a journal, to which lines are only added, so that it outlives a kill at any moment.  A process that works on
it holds a lock of its own beside it; a trial of one that holds none any more is put back, to be tried again.

Must not know: models, what a trial does.
"""

from __future__ import annotations

import math
import os
import shutil
import socket
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import MissingExtraError, ReftuneError
from ..files import told
from .budget import Budget
from .space import Space

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

__all__ = ["SearchStudy", "check_optuna", "opened"]

NAME, FILE, WORKERS, WORK = "search", "study.journal", "workers", "work"
METRICS = ["score", "log10 of trained parameters"]
# Of the trials that come to a rung one in so many goes on (asynchronous successive halving, Li et al. 2020).
ETA = 3
# Others at a rung before any trial is stopped there.
FEWEST = 3
# Trials drawn at random after those that are given, before the sampler looks at what was found.
DRAWN = 5
# A trial that begins says whose it is within so many seconds.
GRACE = 60.0


def check_optuna() -> Any:
    """The package.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import optuna  # noqa: PLC0415
    except ImportError:
        raise MissingExtraError("optuna", extra="search") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna


@contextmanager
def opened(
    folder: Path,
    *,
    made_from: Mapping[str, Any],
    space: Space,
    sampler: str,
    seed: int,
    first: Sequence[Mapping[str, Any]] = (),
) -> Iterator[SearchStudy]:
    """The study of a folder, made if there is none, for one process that works on it.

    A new one tries `first`, and then what the space begins with.

    Raises:
        ReftuneError: what is there is of another task, model, rows or settings; or it cannot be written.
    """
    check_optuna()
    with told(folder / FILE):
        (folder / WORKERS).mkdir(parents=True, exist_ok=True)
    worker = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
    lock = folder / WORKERS / worker
    with locked(lock):
        try:
            with locked(folder / WORKERS / ".setup"):
                _mend(folder)
                study = _study(folder / FILE, sampler, seed)
                _check_same(study, made_from, folder)
                found = SearchStudy(study, folder, worker, space)
                if not study.trials:
                    for start in [*first, *space.starts()]:
                        study.enqueue_trial(dict(start))
                found.put_back()
            yield found
        finally:
            with suppress(OSError):
                lock.unlink()


class SearchStudy:
    """The study as one of its processes sees it."""

    def __init__(self, study: Any, folder: Path, worker: str, space: Space) -> None:
        self.study, self.folder, self.worker, self.space = study, folder, worker, space
        self.states: Any = check_optuna().trial.TrialState
        self._start = time.perf_counter()

    # --- trials -----------------------------------------------------------------------------------------------------

    def trials(self) -> list[Any]:
        """Those that count: done, stopped, failed and running; not those that were left by a process that ended."""
        found = self.study.get_trials(deepcopy=False)
        return [t for t in found if t.state != self.states.WAITING and "left" not in t.user_attrs]

    def next_trial(self, budget: Budget) -> Any | None:
        """The next one, or None if the budget is spent, the running ones of other processes counted."""
        with locked(self.folder / WORKERS / ".setup"):
            if budget.trials is not None and len(self.trials()) >= budget.trials:
                return None
            trial = self.study.ask()
            trial.set_user_attr("worker", self.worker)
        return trial

    def is_to_stop(self, trial: Any, rung: int, loss: float) -> bool:
        """Whether a trial's loss at a rung is not among the best third of those that came there before.

        Only trials with no more parameters are looked at, so that small ones have a chance.
        """
        own = trial.user_attrs["parameters"]
        trial.set_user_attr(f"rung {rung}", loss)
        others = [
            t.user_attrs[f"rung {rung}"]
            for t in self.trials()
            if t.number != trial.number and f"rung {rung}" in t.user_attrs and t.user_attrs["parameters"] <= own
        ]
        if len(others) < FEWEST:
            return False
        return sum(other < loss for other in others) >= math.ceil((len(others) + 1) / ETA)

    def done(self, trial: Any, score: float, parameters: int) -> None:
        self.study.tell(trial, (score, math.log10(parameters)))

    def stopped(self, trial: Any) -> None:
        self.study.tell(trial, state=self.states.PRUNED)

    def failed(self, trial: Any, why: str) -> None:
        trial.set_user_attr("error", why)
        self.study.tell(trial, state=self.states.FAIL)

    def put_back(self) -> None:
        """Queue again what is running by a process that has ended."""
        alive = {path.name for path in (self.folder / WORKERS).iterdir() if is_held(path)} | {self.worker}
        for trial in self.study.get_trials(deepcopy=False):
            worker = trial.user_attrs.get("worker")
            begun = 0.0 if trial.datetime_start is None else trial.datetime_start.timestamp()
            if (
                trial.state != self.states.RUNNING
                or worker in alive
                or (worker is None and time.time() - begun < GRACE)
            ):
                continue
            self.study._storage.set_trial_user_attr(trial._trial_id, "left", True)
            self.study.tell(trial.number, state=self.states.FAIL)
            # of a trial that was given its choices, those that it had not yet come to as well
            self.study.enqueue_trial({**trial.system_attrs.get("fixed_params", {}), **trial.params})

    def others_at_work(self) -> bool:
        """Whether a process that has not ended is at a trial."""
        running = [t for t in self.study.get_trials(deepcopy=False) if t.state == self.states.RUNNING]
        workers = {t.user_attrs.get("worker") for t in running} - {self.worker}
        return any(worker is None or is_held(self.folder / WORKERS / worker) for worker in workers)

    def work_folder(self) -> Path:
        """Where this process may keep what it needs meanwhile; what ended ones left there is removed."""
        work = self.folder / WORK
        for left in work.iterdir() if work.is_dir() else ():
            if left.name != self.worker and not is_held(self.folder / WORKERS / left.name):
                shutil.rmtree(left, ignore_errors=True)
        return work / self.worker

    def alone(self) -> AbstractContextManager[None]:
        """Inside, no other process is so; it is waited for."""
        return locked(self.folder / WORKERS / ".finals")

    # --- what was spent ---------------------------------------------------------------------------------------------

    def note_time(self) -> None:
        """Keep the seconds of this process, for a search that goes on later."""
        self.study.set_user_attr(f"seconds {self.worker}", time.perf_counter() - self._start)

    def seconds(self) -> float:
        """Of all processes, those that have ended among them."""
        kept = {name: value for name, value in self.study.user_attrs.items() if name.startswith("seconds ")}
        own = f"seconds {self.worker}"
        return sum(value for name, value in kept.items() if name != own) + time.perf_counter() - self._start


def _study(file: Path, sampler: str, seed: int) -> Any:
    optuna = check_optuna()
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(file)))
    study = optuna.create_study(
        study_name=NAME, storage=storage, directions=["maximize", "minimize"], load_if_exists=True
    )
    if not study.trials:
        study.set_metric_names(METRICS)
    # another for each process, or all of them would draw the same
    own = seed + len(study.get_trials(deepcopy=False)) + 1000 * len(list((file.parent / WORKERS).iterdir()))
    if sampler == "random":
        study.sampler = optuna.samplers.RandomSampler(seed=own)
    else:
        study.sampler = optuna.samplers.TPESampler(
            seed=own, multivariate=True, group=True, constant_liar=True, n_startup_trials=5 + DRAWN
        )
    return study


def _check_same(study: Any, made_from: Mapping[str, Any], folder: Path) -> None:
    before = study.user_attrs.get("made_from")
    if before is None:
        study.set_user_attr("made_from", dict(made_from))
        return
    differs = [
        f"{name}={_short(before.get(name))}, not {_short(made_from.get(name))}"
        for name in dict.fromkeys([*made_from, *before])
        if before.get(name) != made_from.get(name)
    ]
    if differs:
        raise ReftuneError(
            f"{str(folder)!r} holds a search with {'; '.join(differs)}: scores of the two cannot be compared; go on "
            "with the same, or use another --output"
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}…"


def _mend(folder: Path) -> None:
    """Cut off a last line that was not written to its end, when nobody else writes."""
    file = folder / FILE
    others = [path for path in (folder / WORKERS).iterdir() if not path.name.startswith(".")]
    if not file.is_file() or sum(is_held(path) for path in others) > 1:
        return
    content = file.read_bytes()
    if content and not content.endswith(b"\n"):
        with file.open("r+b") as opened_file:
            opened_file.truncate(content.rfind(b"\n") + 1)


# --- locks ----------------------------------------------------------------------------------------------------------


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Inside, no other process is so with this file; it is waited for.  A process that is killed holds nothing."""
    with told(path):
        file = path.open("ab")
    with file:
        if fcntl is not None:
            with suppress(OSError):
                # where the file system has no locks, as if alone
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def is_held(path: Path) -> bool:
    """Whether another process is `locked` with a file."""
    if fcntl is None:
        return path.exists()
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except OSError:
        # no locks here: whose file is there is taken to be alive
        return True
    return False
