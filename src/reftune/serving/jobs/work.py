"""The process of one job: `python -m reftune.serving.jobs.work FOLDER JOB`.

It shares nothing with the server but the folder, and ends when the server does: its standard input is a pipe that
nobody writes to, and which ends then.  Every so many seconds it leaves a checkpoint, from which another such process
goes on, bit for bit.  On SIGTERM it leaves one and ends.

Must not know: HTTP, how adapters are served.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from ...errors import ReftuneError
from ...training import RunConfig, train_run
from ...training.checkpoints import checkpoints_in, damage, step_of
from .blobs import Folder
from .plan import run_values
from .rows import told_by_name
from .store import Job, Store

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

__all__ = ["DONE", "FAILED", "STOPPED", "main"]

DONE, FAILED, STOPPED = 0, 3, 4
CHECKPOINTS = "checkpoints"
LOCK = ".process"
# A GPU must have so many times the size of the weights free: them, what is kept of rows, activations.
ROOM = 1.5
# In epochs, far less than a step.
EDGE = 1e-9

logger = logging.getLogger("reftune.jobs")


class Stopped(Exception):
    """The job is to go on later."""


class Reporter(TrainerCallback):
    """Tells the store how training gets on, and has a checkpoint written every so many seconds."""

    def __init__(self, store: Store, job: Job, *, save_seconds: float) -> None:
        self.store, self.job = store, job
        self.save_seconds = save_seconds
        self.stopping = threading.Event()
        self.progress: dict[str, Any] = {"elapsed": 0.0, **job.progress}
        self.before = float(self.progress["elapsed"])
        self.began = self.saved = time.monotonic()
        self.tokens = self.first = 0
        self.evaluated = -1

    def on_fill(self, done: int, total: int) -> None:
        self._look()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._look()
        rows = kwargs["train_dataloader"].dataset
        self.tokens = sum(map(len, rows["input_ids"])) if "input_ids" in rows.column_names else 0
        self.began = self.saved = time.monotonic()
        self.first = state.global_step
        again = f", from step {self.first}" if self.first else ""
        self.store.tell(self.job.id, f"Training begins{again}: {state.max_steps} steps")
        self._note(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # the last step of an epoch counts when it is evaluated: a run that goes on from there would not do that
        if state.epoch is None or abs(state.epoch - round(state.epoch)) > EDGE:
            self._save_if_due(state, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._save_if_due(state, control)

    def _save_if_due(self, state: Any, control: Any) -> None:
        due = time.monotonic() - self.saved >= self.save_seconds
        # at the end, what is left takes a moment
        if (due or self.stopping.is_set()) and state.global_step < state.max_steps:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.saved = time.monotonic()
        known = {name: self.progress.get(name) for name in ("train_loss", "valid_loss") if name in self.progress}
        self.store.add_checkpoint(self.job.id, state.global_step, {"step": state.global_step, **known})
        self._look()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        logs = logs or {}
        step, total = state.global_step, state.max_steps
        data: dict[str, Any] = {"step": step, "total_steps": total, "epoch": round(state.epoch or 0.0, 4)}
        if "loss" in logs:
            data |= {"train_loss": float(logs["loss"]), "learning_rate": logs.get("learning_rate")}
            self.progress["train_loss"] = data["train_loss"]
            text = f"Step {step}/{total}: training loss={data['train_loss']:.4f}"
        elif "eval_loss" in logs and step != self.evaluated:
            # at the end, it is evaluated once more
            self.evaluated = step
            data["valid_loss"] = self.progress["valid_loss"] = float(logs["eval_loss"])
            text = f"Step {step}/{total}: validation loss={data['valid_loss']:.4f}"
        else:
            return
        self._note(state)
        data |= {name: self.progress[name] for name in ("tokens", "elapsed")}
        self.store.tell(self.job.id, text, data=data, step=step)

    def _note(self, state: Any) -> None:
        seconds = time.monotonic() - self.began
        step, total = state.global_step, state.max_steps
        self.progress |= {
            "step": step,
            "total_steps": total,
            "epoch": round(state.epoch or 0.0, 4),
            "tokens": round((state.epoch or 0.0) * self.tokens),
            "elapsed": round(self.before + seconds, 3),
        }
        done = step - self.first
        if done:
            self.progress["finish"] = int(time.time() + (total - step) * seconds / done)
        self.store.note(self.job.id, progress=self.progress)

    def _look(self) -> None:
        if self.stopping.is_set():
            raise Stopped


def main(folder: Path, id: str, save_seconds: float) -> int:
    store = Store(folder, durable=False)
    job = store.job(id)
    if job is None:
        return FAILED
    place = Folder(folder)
    reporter = Reporter(store, job, save_seconds=save_seconds)
    signal.signal(signal.SIGTERM, lambda *_: reporter.stopping.set())
    threading.Thread(target=_end_with_server, daemon=True).start()
    try:
        with _alone(place.job(id)):
            result = _train(store, job, place, reporter)
    except Stopped:
        return STOPPED
    except Exception as error:  # noqa: BLE001 — whatever it is, the job is told of it
        traceback.print_exc()
        store.note(id, result={"failure": _told(error, job, place)})
        return FAILED
    store.note(id, result=result)
    return DONE


def _train(store: Store, job: Job, place: Folder, reporter: Reporter) -> dict[str, Any]:
    spec = job.spec
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with suppress(OSError):
        # where the system is short of memory, it is this process that has to go, not the server
        Path("/proc/self/oom_score_adj").write_text("500")
    torch.set_num_threads(spec["threads"])
    _check_room(spec)
    output = place.job(job.id)
    config = RunConfig.from_mapping(run_values(spec, files=place.files, output=output))
    # what is not whole was being written when this was killed
    whole = [step_of(path) for path in checkpoints_in(output / CHECKPOINTS) if damage(path) is None]
    store.forget_after(job.id, max(whole, default=0))
    run = {"resume": bool(whole), "overwrite": not whole, "callbacks": [reporter], "on_fill": reporter.on_fill}
    if spec["type"] == "dpo":
        from .dpo import train_preferences  # noqa: PLC0415 — TRL takes seconds, and is an extra

        result = train_preferences(config, spec, **run)
    else:
        result = train_run(config, **run)
    if result.final_loss != result.final_loss:
        raise ReftuneError("the loss is not a number: training diverged; try a lower learning_rate_multiplier")
    found = {
        "train_loss": result.final_loss,
        "trained_tokens": round(spec["hyperparameters"]["n_epochs"] * reporter.tokens),
        "steps": result.steps,
        "parameters": result.trainable_parameters,
        "bytes": result.adapter_bytes,
    }
    return found if result.eval_loss is None else {**found, "valid_loss": result.eval_loss}


def _check_room(spec: dict[str, Any]) -> None:
    """Refuse a GPU that has no room for the model beside what is served there, and take no more than the job's share.

    Raises:
        ReftuneError: there is no such device, or too little of its memory is free.
    """
    device = spec["device"]
    if device in ("cpu", "mps") or (device == "auto" and not torch.cuda.is_available()):
        return
    if not torch.cuda.is_available():
        raise ReftuneError(f"the device {device!r} cannot be used: there is no GPU; use --fine-tuning-device cpu")
    free, total = torch.cuda.mem_get_info()
    share = spec["memory"]
    room = free if share is None else min(free, int(share * total))
    need = int(ROOM * spec["weights"])
    if share is not None and free < share * total:
        raise ReftuneError(
            f"the GPU has {free / 1e9:.1f} of {total / 1e9:.1f} GB free, less than the share for training, "
            f"{share * total / 1e9:.1f} GB; give the server less (vLLM: --gpu-memory-utilization), or training"
        )
    if room < need:
        raise ReftuneError(
            f"training needs about {need / 1e9:.1f} GB of the GPU for this model, and there are {room / 1e9:.1f} GB; "
            "give the server less (vLLM: --gpu-memory-utilization), or train with --fine-tuning-device cpu"
        )
    if share is not None:
        torch.cuda.set_per_process_memory_fraction(share)


def _told(error: Exception, job: Job, place: Folder) -> dict[str, Any]:
    """Why the job failed, by the client's names of its files."""
    message = " ".join(str(error).split()) or type(error).__name__
    param = None
    for name in ("training", "validation"):
        file = job.spec[name]
        if file is not None and (path := str(place.blob(file["blob"]))) in message:
            message, param = told_by_name(message, Path(path), file["filename"]), f"{name}_file"
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "not enough memory" in message:
        return {
            "code": "out_of_memory",
            "message": f"the job ran out of memory: {message[:300]}; use a smaller batch_size or max_length",
            "param": None,
        }
    code = "invalid_file" if param else "training_failed" if isinstance(error, ReftuneError) else "internal_error"
    if code == "internal_error":
        message = f"{type(error).__name__}: {message}"
    return {"code": code, "message": message[:2000], "param": param}


def _end_with_server() -> None:
    # not `sys.stdin`, which would be waited for at the end of this process
    with suppress(OSError):
        while os.read(0, 1):
            pass
    os._exit(STOPPED)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait for the end of another process of this job, such as one whose server was killed a moment ago."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as lock:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])))
