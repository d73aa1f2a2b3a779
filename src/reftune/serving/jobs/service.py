"""What the routes of fine-tuning do, of either server: files, jobs, previews and adapters.

All of it is plain calls, for threads: nothing here waits for a job.

Must not know: HTTP, the backends.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any

from ...config import ReftConfig
from ...data.records import Rows
from ...errors import ReftuneError
from ...models import load_tokenizer
from ..refusals import ApiError, no_such
from .blobs import Folder, suffix_of
from .plan import Base, groups_told, reft_of, sites_of
from .preview import preview_rows
from .rows import read_file
from .schemas import (
    CheckpointObject,
    CreateJob,
    Deleted,
    EventObject,
    FileObject,
    JobObject,
    Page,
    PreviewReply,
    PreviewRequest,
    Progress,
)
from .settings import FineTuning
from .shelf import Loaded, Shelf
from .store import File, Job, Store, new_id
from .supervisor import Host, Supervisor, name_of

__all__ = ["Jobs"]

# Without a word on it, rows are no longer than this, which few are.
LENGTH = 2048
PURPOSE = "fine-tune"
LONGEST_FILENAME = 255
# Seconds; one that cannot be loaded is not waited for.
PATIENCE = 60.0
EVENT = "ftevent-"


class Jobs:
    """Use: `start`, then the rest from any thread, `stop`."""

    def __init__(
        self, settings: FineTuning, base: Base, host: Host, loaded: Callable[[], list[Loaded]], *, weights: int
    ) -> None:
        """`loaded`: all adapters that the server has; `weights`: bytes of the base model."""
        self.settings = settings
        self.base = base
        self.host = host
        self.weights = weights
        self.folder = Folder(settings.folder)
        self.store = Store(settings.folder)
        known = self.store.fact("base", base.name)
        if known != base.name:
            raise ReftuneError(
                f"{str(settings.folder)!r} holds files and jobs of the model {known!r}, but {base.name!r} is served; "
                "name another folder for --fine-tuning"
            )
        self.shelf = Shelf(self.store, self.folder, base, host, loaded)
        self.supervisor = Supervisor(settings, self.store, self.folder, host)
        self._tokenizer: Any = None
        # a tokenizer is for one thread at a time
        self._reading = threading.Lock()

    def start(self, *, alone: bool) -> None:
        """Serve what was trained earlier, and go on with what was not to its end.  `alone`: no other process of this
        server does so.

        Raises:
            ReftuneError: another server has the folder.
        """
        took = self.supervisor.take()
        if not took and alone:
            raise ReftuneError(
                f"another server trains in {str(self.settings.folder)!r}; wait for its end, or name another folder for "
                "--fine-tuning"
            )
        self.supervisor.start()
        if not took:
            self._wait_for_adapters()

    def _wait_for_adapters(self) -> None:
        """Until another process of this server has loaded what was trained earlier: from then on all have it."""
        wanted = {name_of(job) for job in self.store.of_status("succeeded") if job.served}
        until = time.monotonic() + PATIENCE
        while not wanted <= {adapter.name for adapter in self.shelf.loaded()} and time.monotonic() < until:
            time.sleep(0.1)

    def stop(self) -> None:
        self.supervisor.stop()
        self.store.close()

    @property
    def tokenizer(self) -> Any:
        """Of the base model; loaded when it is first asked for, inside `_reading`."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.base.path)
        return self._tokenizer

    # --- files --------------------------------------------------------------------------------------------------------

    def upload(self, filename: str, purpose: str, content: bytes) -> FileObject:
        if purpose != PURPOSE:
            raise ApiError(400, f"purpose={purpose[:100]!r} is not served; use {PURPOSE!r}", param="purpose")
        name = filename.replace("\\", "/").rpartition("/")[2]
        if not name or not name.isprintable() or len(name) > LONGEST_FILENAME:
            what = f"1 to {LONGEST_FILENAME} printable characters"
            raise ApiError(400, f"the name of the file, {filename[:100]!a}, is not valid; it has {what}", param="file")
        suffix = suffix_of(name)
        if not content:
            raise ApiError(400, f"the file {name!r} is empty", param="file")
        if self.folder.bytes() + len(content) > self.settings.max_disk_bytes:
            raise ApiError(
                400,
                f"the server's folder holds as much as it may ({self.settings.max_disk_bytes} bytes); delete files or "
                "adapters that are not needed",
                code="storage_full",
            )
        with self.store.changing():
            blob = self.folder.add(content, suffix)
            file = File(new_id("file"), name, PURPOSE, len(content), blob, int(time.time()))
            self.store.add_file(file)
        return _file_object(file)

    def files(self, *, after: str | None, limit: int, order: str, purpose: str | None) -> Page:
        found = self.store.files(after=after, limit=limit + 1, newest_first=order == "desc", purpose=purpose)
        if found is None:
            raise no_such("file", after, "after")
        return _page([_file_object(file) for file in found], limit)

    def file(self, id: str) -> FileObject:
        return _file_object(self._file(id))

    def content(self, id: str) -> tuple[str, bytes]:
        """Name and content of a file."""
        file = self._file(id)
        return file.filename, self.folder.blob(file.blob).read_bytes()

    def delete_file(self, id: str) -> Deleted:
        file = self._file(id)
        with self.store.changing():
            for job in self.store.unfinished():
                if any(job.spec[name] and job.spec[name]["id"] == id for name in ("training", "validation")):
                    raise ApiError(400, f"the job {job.id} needs the file {id}; cancel it, or wait for its end")
            self.store.remove_file(id)
            if file.blob not in self.store.blobs():
                self.folder.blob(file.blob).unlink(missing_ok=True)
        return Deleted(id=id, object="file")

    def _file(self, id: str, param: str | None = None) -> File:
        found = self.store.file(id)
        if found is None:
            raise no_such("file", id, param)
        return found

    # --- jobs ---------------------------------------------------------------------------------------------------------

    def create(self, body: CreateJob) -> JobObject:
        if body.model != self.base.name:
            known = f"{body.model!a} is not the model that is served here, {self.base.name!r}"
            raise ApiError(404, f"{known}; only that is fine-tuned", code="model_not_found", param="model")
        way = body.way
        files = {"training": self._file(body.training_file, "training_file"), "validation": None}
        if body.validation_file is not None:
            files["validation"] = self._file(body.validation_file, "validation_file")
        for name, file in files.items():
            if file is not None and file.purpose != PURPOSE:
                message = f"the file {file.id} has the purpose {file.purpose!r}; use one of the purpose {PURPOSE!r}"
                raise ApiError(400, message, param=f"{name}_file")
        if body.max_length is not None and body.max_length > self.base.limit:
            message = f"max_length={body.max_length}, but this model takes {self.base.limit} tokens"
            raise ApiError(400, message, param="max_length")
        if way.type == "dpo":
            _check_trl()
        spec: dict[str, Any] = {
            "model": self.base.name,
            "base": self.base.path,
            "dtype": self.base.dtype,
            "weights": self.weights,
            "type": way.type,
            "hyperparameters": way.given.model_dump(exclude_none=True),
            **{name: _reference(file) for name, file in files.items()},
            "suffix": body.suffix,
            "seed": secrets.randbelow(1 << 31) if body.seed is None else body.seed,
            "metadata": body.metadata,
            "reft": self.reft(body.reft),
            "max_length": body.max_length or min(LENGTH, self.base.limit),
            "device": self.settings.device,
            "memory": self.settings.memory,
            # sums of another number of threads are others in their last bits
            "threads": self.settings.threads,
        }
        id = new_id("ftjob")
        if not self.store.add_job(id, spec, most=self.settings.max_queue):
            message = f"{self.settings.max_queue} jobs have not ended yet, which is as many as may; try again later"
            raise ApiError(429, message, code="queue_full", headers={"Retry-After": "60"})
        self.supervisor.wake()
        return self.job(id)

    def reft(self, given: dict[str, Any] | None) -> dict[str, Any]:
        with self._reading:
            try:
                found = reft_of(given, self.base, self.tokenizer)
                self.host.check(ReftConfig(**found), sites_of(found, self.base))
                return found
            except ReftuneError as error:
                raise ApiError(400, str(error)[:2000], param="reft") from error

    def jobs(self, *, after: str | None, limit: int, metadata: dict[str, str]) -> Page:
        found: list[Job] = []
        last = after
        while len(found) <= limit:
            rows = self.store.jobs(after=last, limit=limit + 1)
            if rows is None:
                raise no_such("job", after, "after")
            found += [job for job in rows if metadata.items() <= (job.spec["metadata"] or {}).items()]
            if len(rows) <= limit:
                break
            last = rows[-1].id
        waiting = self._waiting()
        return _page([_job_object(job, waiting) for job in found], limit)

    def job(self, id: str) -> JobObject:
        return _job_object(self._job(id), self._waiting())

    def cancel(self, id: str) -> JobObject:
        return self._change(id, "cancelled", "cancelled", of=("validating_files", "queued", "running", "paused"))

    def pause(self, id: str) -> JobObject:
        return self._change(id, "paused", "paused", of=("queued", "running"))

    def resume(self, id: str) -> JobObject:
        return self._change(id, "queued", "resumed", of=("paused",))

    def _change(self, id: str, status: Any, word: str, *, of: Any) -> JobObject:
        job = self._job(id)
        with self.store.changing():
            if not self.store.change(id, status, of=of):
                job = self._job(id)
                message = f"the job {id} is {job.status}; only one that is {' or '.join(of)} can be {word}"
                raise ApiError(400, message, code="invalid_status")
            self.store.tell(id, f"Fine-tuning job {word}")
        if status == "cancelled" and job.status != "running":
            # the process of one that runs is ended first
            self.folder.forget_job(id)
        self.supervisor.wake()
        return self.job(id)

    def events(self, id: str, *, after: str | None, limit: int) -> Page:
        self._job(id)
        seq = None
        if after is not None:
            digits = after.removeprefix(EVENT)
            if not (digits.isascii() and digits.isdecimal() and len(digits) < 18):
                raise no_such("event", after, "after")
            seq = int(digits)
        found = self.store.events(id, after=seq, limit=limit + 1)
        made = [
            EventObject(
                id=f"{EVENT}{event.seq}",
                created_at=event.created_at,
                level=event.level,  # type: ignore[arg-type]
                message=event.message,
                type=event.type,  # type: ignore[arg-type]
                data=event.data,
            )
            for event in found
        ]
        return _page(made, limit)

    def checkpoints(self, id: str, *, after: str | None, limit: int) -> Page:
        name = name_of(self._job(id))
        made = [
            CheckpointObject(
                id=f"ftckpt-{id.removeprefix('ftjob-')}-{step}",
                created_at=at,
                fine_tuned_model_checkpoint=f"{name}:ckpt-step-{step}",
                fine_tuning_job_id=id,
                step_number=step,
                metrics=metrics,
            )
            for step, at, metrics in self.store.checkpoints(id)
        ]
        if after is not None:
            names = [checkpoint.id for checkpoint in made]
            if after not in names:
                raise no_such("checkpoint", after, "after")
            made = made[names.index(after) + 1 :]
        return _page(made[: limit + 1], limit)

    def _job(self, id: str) -> Job:
        found = self.store.job(id)
        if found is None:
            raise no_such("job", id)
        return found

    def _waiting(self) -> list[str]:
        return [job.id for job in self.store.of_status("validating_files", "queued")]

    # --- preview ------------------------------------------------------------------------------------------------------

    def preview(self, body: PreviewRequest) -> PreviewReply:
        reft = self.reft(body.reft)
        if body.rows is not None:
            # what a table cannot hold of JSON is not in a request either
            rows = Rows(json.loads(json.dumps(body.rows)), "the rows")
        else:
            file = self._file(body.training_file or "", "training_file")
            path = self.folder.blob(file.blob)
            rows = read_file(path, file.filename, dpo=False, most=self.settings.max_rows)
        length = min(body.max_length or LENGTH, self.base.limit)
        with self._reading:
            shown = preview_rows(
                rows, reft, self.base, self.tokenizer, first=body.after, limit=body.limit, max_length=length
            )
        more = body.after + body.limit < len(rows)
        told = groups_told(reft, self.base)
        return PreviewReply(groups=told, reft=reft, total=len(rows), has_more=more, data=shown)


def _check_trl() -> None:
    import importlib.util  # noqa: PLC0415

    if importlib.util.find_spec("trl") is None:
        raise ApiError(400, "the type 'dpo' needs TRL on the server: `pip install 'reftune[trl]'`", param="method")


def _page(data: list[Any], limit: int) -> Page:
    """Of one more than there is room for, those that there is room for."""
    kept = data[:limit]
    ends = (kept[0].id, kept[-1].id) if kept else (None, None)
    return Page(data=kept, has_more=len(data) > limit, first_id=ends[0], last_id=ends[1])


def _reference(file: File | None) -> dict[str, Any] | None:
    if file is None:
        return None
    return {"id": file.id, "filename": file.filename, "blob": file.blob, "rows": None}


def _file_object(file: File) -> FileObject:
    return FileObject(
        id=file.id,
        bytes=file.bytes,
        created_at=file.created_at,
        filename=file.filename,
        purpose=file.purpose,  # type: ignore[arg-type]
    )


def _job_object(job: Job, waiting: list[str]) -> JobObject:
    spec, result = job.spec, job.result
    hyperparameters = {
        name: spec["hyperparameters"].get(name, "auto")
        for name in ("n_epochs", "batch_size", "learning_rate_multiplier")
    }
    if spec["type"] == "dpo":
        hyperparameters["beta"] = spec["hyperparameters"].get("beta", "auto")
    is_done = job.status == "succeeded"
    return JobObject(
        id=job.id,
        created_at=job.created_at,
        finished_at=job.finished_at,
        estimated_finish=job.progress.get("finish") if job.status == "running" else None,
        model=spec["model"],
        fine_tuned_model=result.get("fine_tuned_model") if is_done else None,
        status=job.status,
        error=job.error,  # type: ignore[arg-type]
        training_file=spec["training"]["id"],
        validation_file=spec["validation"] and spec["validation"]["id"],
        hyperparameters=hyperparameters,
        method={"type": spec["type"], spec["type"]: {"hyperparameters": hyperparameters}},
        result_files=[result["result_file"]] if is_done else [],
        trained_tokens=result.get("trained_tokens") if is_done else None,
        seed=spec["seed"],
        metadata=spec["metadata"],
        suffix=spec["suffix"],
        reft=spec["reft"],
        max_length=spec["max_length"],
        progress=Progress(**{name: job.progress[name] for name in Progress.model_fields if name in job.progress}),
        queue_position=waiting.index(job.id) if job.id in waiting else None,
    )
