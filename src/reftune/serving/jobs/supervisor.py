"""The thread of a server that checks files, starts the processes of jobs, and serves what they have trained.

Of several processes of one server, and of several servers, one holds the folder.  It keeps nothing to itself: whatever
it does next follows from the statuses of jobs and from which processes run, so that it can be killed at any moment.

Must not know: HTTP, how a job trains.
"""

from __future__ import annotations

import csv
import io
import logging
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from ...config import ReftConfig
from ...errors import DataError, ReftuneError
from ..plans import Sites
from .blobs import Folder
from .plan import hyperparameters_of
from .rows import read_file
from .schemas import Hyperparameters
from .settings import FineTuning
from .store import File, Job, Store, new_id

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

__all__ = ["Host", "Supervisor", "name_of"]

logger = logging.getLogger("reftune.serving")

# The codes with which a job's process ends; `work` loads torch.
DONE, FAILED, STOPPED = 0, 3, 4
LOG = "log.txt"
TICK = 0.1
# A process that is killed so often in a row without a step forward is killed for a reason.
MOST_DEATHS = 5
# Seconds for a process to leave its checkpoint.
PATIENCE = 30.0
LOG_TAIL = 2000
METRICS: tuple[str, ...] = ("step", "epoch", "train_loss", "valid_loss", "learning_rate", "tokens", "elapsed")


class Host(Protocol):
    """A server's adapters."""

    def check(self, config: ReftConfig, sites: Sites) -> None:
        """Raises `ReftuneError` if an adapter of this configuration could not be served."""
        ...

    def load(self, name: str, folder: Path) -> None:
        """Serve an adapter.  From any thread; raises `ReftuneError` if it cannot be served."""
        ...

    def unload(self, name: str) -> None: ...


def name_of(job: Job) -> str:
    """Under which the adapter of a job is served."""
    base = job.spec["model"]
    # a folder by its own name: paths are nobody's business
    base = Path(base).name if os.path.isdir(base) else base
    return f"ft:{base}:{job.spec['suffix'] or ''}:{job.id.rpartition('-')[2][-12:]}"


class Supervisor:
    """Use: `start` (or `take` first, to serve what was trained earlier before anybody asks), `stop`."""

    def __init__(self, settings: FineTuning, store: Store, folder: Folder, host: Host) -> None:
        self.settings = settings
        self.store = store
        self.folder = folder
        self.host = host
        self.holds = False
        self._lock: Any = None
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._told_to_stop: set[str] = set()
        self._wake = threading.Event()
        self._ending = False
        self._thread = threading.Thread(target=self._work, name="reftune-jobs", daemon=True)

    # --- from any thread ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """There is something to do."""
        self._wake.set()

    def stop(self) -> None:
        """End the processes of jobs, each behind a checkpoint; the jobs go on when a server has the folder again."""
        self._ending = True
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def running(self) -> int:
        return len(self._processes)

    def take(self) -> bool:
        """Hold the folder, if nobody else does; then remove what was left half, and serve what was trained."""
        if self.holds:
            return True
        lock = (self.folder.path / "lock").open("a+")
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                lock.close()
                return False
        self._lock, self.holds = lock, True
        self._tidy()
        for job in self.store.unfinished():
            # whatever killed it may be over
            self.store.note(job.id, deaths=0, died_at=-1)
        for job in self.store.of_status("succeeded"):
            if job.served:
                self._load(job)
        return True

    # --- in the thread ------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while not self._ending:
            self._wake.clear()
            try:
                if self.take():
                    self._step()
            except Exception:
                # a disk that is full, say: it may have room again
                logger.exception("fine-tuning: what was to be done next failed; it is tried again")
                self._wake.wait(5.0)
            self._wake.wait(TICK if self.holds else 1.0)
        for process in self._processes.values():
            with suppress(OSError):
                process.terminate()
        until = time.monotonic() + PATIENCE
        for process in self._processes.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))
            process.kill()
            process.wait()
        if self._lock is not None:
            self._lock.close()

    def _step(self) -> None:
        for id, process in list(self._processes.items()):
            job = self.store.job(id)
            if process.poll() is not None:
                del self._processes[id]
                self._told_to_stop.discard(id)
                self._ended(id, job, process.returncode)
            elif job is None or job.status in ("cancelled", "failed"):
                process.kill()
            elif job.status != "running" and id not in self._told_to_stop:
                self._told_to_stop.add(id)
                process.terminate()
        for job in self.store.of_status("validating_files"):
            self._check(job)
        # first those that ran before
        for job in [*self.store.of_status("running"), *self.store.of_status("queued")]:
            if len(self._processes) >= self.settings.jobs:
                break
            if job.id not in self._processes:
                self._begin(job)

    def _check(self, job: Job) -> None:
        spec, rows = job.spec, {}
        for name in ("training", "validation"):
            file = spec[name]
            if file is None:
                continue
            path = self.folder.blob(file["blob"])
            try:
                found = read_file(path, file["filename"], dpo=spec["type"] == "dpo", most=self.settings.max_rows)
            except (DataError, OSError) as error:
                message = str(error)[:2000]
                told = {"code": f"invalid_{name}_file", "message": message, "param": f"{name}_file"}
                self._fail(job.id, told, of="validating_files")
                return
            rows[name] = len(found)
        for name, count in rows.items():
            spec[name]["rows"] = count
        given = Hyperparameters(**spec["hyperparameters"])
        spec["hyperparameters"] = hyperparameters_of(given, rows=rows["training"], dpo=spec["type"] == "dpo")
        with self.store.changing():
            self.store.note(job.id, spec=spec)
            if self.store.change(job.id, "queued", of=("validating_files",)):
                self.store.tell(job.id, "Files validated, job enqueued")

    def _begin(self, job: Job) -> None:
        if job.status == "queued" and not self.store.change(job.id, "running", of=("queued",)):
            return
        output = self.folder.job(job.id)
        output.mkdir(parents=True, exist_ok=True)
        threads = str(job.spec["threads"])
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        environment |= {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
        device = job.spec["device"]
        if device == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""
        elif ":" in device:
            environment["CUDA_VISIBLE_DEVICES"] = device.partition(":")[2]
        words = [str(self.folder.path), job.id, str(self.settings.save_seconds)]
        with (output / LOG).open("ab") as log:
            self._processes[job.id] = subprocess.Popen(
                [sys.executable, "-m", "reftune.serving.jobs.work", *words],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment,
                # Ctrl-C is for the server, which ends them behind a checkpoint
                start_new_session=True,
            )
        if hasattr(os, "setpriority"):
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, self._processes[job.id].pid, self.settings.nice)
        again = job.status == "running" or job.progress.get("step")
        self.store.tell(job.id, "Fine-tuning job goes on" if again else "Fine-tuning job started")

    def _ended(self, id: str, job: Job | None, code: int) -> None:
        if job is None or job.status != "running":
            if job is None or job.status not in ("queued", "paused"):
                self.folder.forget_job(id)
            return
        if code == DONE:
            self._publish(job)
        elif code == FAILED:
            unknown = {"code": "internal_error", "message": "the process of the job left no word", "param": None}
            self._fail(id, job.result.get("failure", unknown))
        elif code != STOPPED:
            self._died(job, code)

    def _died(self, job: Job, code: int) -> None:
        """A process that was killed is begun anew; if it never comes a step further, somebody kills it for a reason."""
        step = job.progress.get("step", 0)
        deaths = job.deaths + 1 if step <= job.died_at else 1
        self.store.note(job.id, deaths=deaths, died_at=max(step, job.died_at))
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        if deaths >= MOST_DEATHS:
            memory = "; the system does so where memory is short: use a smaller batch_size or max_length"
            message = (
                f"the process of the job ended {deaths} times at step {step} ({how}){memory if code == -9 else ''}"
            )
            self._fail(job.id, {"code": "process_ended", "message": message + self._tail(job.id), "param": None})
            return
        message = f"The process of the job ended ({how}); it goes on from its last checkpoint"
        self.store.tell(job.id, message, level="warn")

    def _tail(self, id: str) -> str:
        with suppress(OSError):
            lines = (self.folder.job(id) / LOG).read_text(errors="replace")[-LOG_TAIL:].strip().splitlines()
            return f"; its last line: {lines[-1]}" if lines else ""
        return ""

    def _fail(self, id: str, error: dict[str, Any], *, of: Any = "running") -> None:
        if self.store.change(id, "failed", of=(of,), error=error):
            self.store.tell(id, f"The job failed: {error['message']}", level="error")
        self.folder.forget_job(id)

    def _publish(self, job: Job) -> None:
        self.folder.publish(job.id)
        loaded = self._load(job)
        # a table of all that was told while it trained, as OpenAI has it
        text = self._results(job)
        with self.store.changing():
            blob = self.folder.add(text, ".csv")
            file = File(new_id("file"), f"{job.id}.csv", "fine-tune-results", len(text), blob, int(time.time()))
            if self.store.change(job.id, "succeeded", of=("running",)):
                self.store.add_file(file)
                result = {**job.result, "fine_tuned_model": name_of(job), "result_file": file.id}
                self.store.note(job.id, result=result, served=loaded)
                self.store.tell(job.id, f"New fine-tuned model created: {name_of(job)}")
                self.store.tell(job.id, "The job has successfully completed")
                self.folder.forget_job(job.id)
                return
        # paused or cancelled in the meantime
        if loaded:
            self.host.unload(name_of(job))
        self.folder.forget_adapter(job.id)
        self._ended(job.id, self.store.job(job.id), STOPPED)

    def _load(self, job: Job) -> bool:
        try:
            self.host.load(name_of(job), self.folder.adapter(job.id))
        except ReftuneError as error:
            logger.warning("the adapter %s cannot be served: %s", name_of(job), error)
            self.store.tell(job.id, f"The adapter is there, but cannot be served: {error}", level="warn")
            return False
        return True

    def _results(self, job: Job) -> bytes:
        made = io.StringIO()
        table = csv.DictWriter(made, METRICS, extrasaction="ignore")
        table.writeheader()
        table.writerows(self.store.metrics(job.id))
        return made.getvalue().encode()

    def _tidy(self) -> None:
        """Remove what nobody needs any more."""
        with self.store.changing():
            kept = {job.id for job in self.store.unfinished()}
            made = {job.id for job in self.store.of_status("succeeded")}
            removed = self.folder.sweep(blobs=self.store.blobs(), jobs=kept, adapters=made)
        if removed:
            logger.info("fine-tuning: removed what was left half: %s", ", ".join(removed))
