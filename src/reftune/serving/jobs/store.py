"""Files, jobs and their events in one SQLite file, which servers and the processes of jobs write to.

What a job is, its `status` says alone, and every change of it names the statuses that it may be changed from: whoever
is later finds that, and does nothing.  A process that is killed leaves nothing half: a statement is done or it is not.

Must not know: HTTP, models, what is in the files.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import ReftuneError
from .schemas import UNFINISHED, Status

__all__ = ["Event", "File", "Job", "Store", "new_id"]

DATABASE = "jobs.sqlite"
# Of other versions nothing is known.
VERSION = 1
PATIENCE = 30.0
SCHEMA = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE files (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, filename TEXT NOT NULL, purpose TEXT NOT NULL,
    bytes INTEGER NOT NULL, blob TEXT NOT NULL, created_at INTEGER NOT NULL);
CREATE TABLE jobs (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, status TEXT NOT NULL, created_at INTEGER NOT NULL,
    finished_at INTEGER, spec TEXT NOT NULL, error TEXT, progress TEXT NOT NULL DEFAULT '{}',
    result TEXT NOT NULL DEFAULT '{}', served INTEGER NOT NULL DEFAULT 0, deaths INTEGER NOT NULL DEFAULT 0,
    died_at INTEGER NOT NULL DEFAULT -1);
CREATE TABLE events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, job TEXT NOT NULL, created_at INTEGER NOT NULL, level TEXT NOT NULL,
    type TEXT NOT NULL, message TEXT NOT NULL, data TEXT, step INTEGER);
CREATE INDEX events_of_jobs ON events (job, seq);
CREATE TABLE checkpoints (
    job TEXT NOT NULL, step INTEGER NOT NULL, created_at INTEGER NOT NULL, metrics TEXT NOT NULL,
    PRIMARY KEY (job, step));
"""


def new_id(kind: str) -> str:
    """A name that no other has, of letters and digits behind the kind."""
    return f"{kind}-{secrets.token_hex(12)}"


@dataclass(frozen=True)
class File:
    id: str
    filename: str
    purpose: str
    bytes: int
    blob: str
    created_at: int


@dataclass(frozen=True)
class Job:
    id: str
    status: Status
    created_at: int
    finished_at: int | None
    spec: dict[str, Any]
    """What was asked for, with what was chosen for it; see `plan`."""
    error: dict[str, Any] | None
    progress: dict[str, Any]
    result: dict[str, Any]
    """What its process has to show, once it has trained to the end."""
    served: bool
    """Whether its adapter is to be loaded, also after a restart."""
    deaths: int
    """How often in a row, of this server, its process was killed before it came a step further than `died_at`."""
    died_at: int


@dataclass(frozen=True)
class Event:
    seq: int
    created_at: int
    level: str
    type: str
    message: str
    data: dict[str, Any] | None


class Store:
    """From any thread.  `durable`: what is written outlives a loss of power; without, the end of the process."""

    def __init__(self, folder: Path, *, durable: bool = True) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self._connection = sqlite3.connect(
            folder / DATABASE, timeout=PATIENCE, isolation_level=None, check_same_thread=False
        )
        self._connection.row_factory = sqlite3.Row
        try:
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
            self._set_up()
        except sqlite3.DatabaseError as error:
            raise ReftuneError(
                f"{str(folder / DATABASE)!r} cannot be used: {error}; name another folder, or move that file away"
            ) from error

    def _set_up(self) -> None:
        with self.changing():
            found = self._one("PRAGMA user_version")[0]
            if found == VERSION:
                return
            if found:
                raise ReftuneError(f"{DATABASE} was written by another version of reftune ({found}, not {VERSION})")
            for statement in SCHEMA.split(";\n"):
                self._run(statement)
            self._run(f"PRAGMA user_version={VERSION}")

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Inside, nobody else writes; after an error nothing of it is done."""
        with self._lock:
            self._run("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._run("ROLLBACK")
                raise
            self._run("COMMIT")

    def _run(self, statement: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        with self._lock:
            return self._connection.execute(statement, values)

    def _all(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._lock:
            return self._connection.execute(statement, values).fetchall()

    def _one(self, statement: str, values: Sequence[Any] = ()) -> Any:
        with self._lock:
            return self._connection.execute(statement, values).fetchone()

    # --- facts ----------------------------------------------------------------------------------------------------

    def fact(self, name: str, value: str) -> str:
        """What was first noted under this name: by now, or earlier."""
        self._run("INSERT OR IGNORE INTO facts VALUES (?, ?)", (name, value))
        return self._one("SELECT value FROM facts WHERE name = ?", (name,))[0]

    # --- files ----------------------------------------------------------------------------------------------------

    def add_file(self, file: File) -> None:
        values = (file.id, file.filename, file.purpose, file.bytes, file.blob, file.created_at)
        self._run("INSERT INTO files (id, filename, purpose, bytes, blob, created_at) VALUES (?,?,?,?,?,?)", values)

    def file(self, id: str) -> File | None:
        row = self._one("SELECT * FROM files WHERE id = ?", (id,))
        return None if row is None else _file(row)

    def files(self, *, after: str | None, limit: int, newest_first: bool, purpose: str | None) -> list[File] | None:
        """None: there is no file `after`."""
        where, values = ("purpose = ?", [purpose]) if purpose is not None else ("1", [])
        rows = self._page("files", after, limit, newest_first, where, values)
        return None if rows is None else [_file(row) for row in rows]

    def remove_file(self, id: str) -> None:
        self._run("DELETE FROM files WHERE id = ?", (id,))

    def blobs(self) -> set[str]:
        """Those that a file or an unfinished job needs."""
        found = {row[0] for row in self._all("SELECT blob FROM files")}
        for job in self.unfinished():
            found.update(job.spec[name]["blob"] for name in ("training", "validation") if job.spec.get(name))
        return found

    # --- jobs -----------------------------------------------------------------------------------------------------

    def add_job(self, id: str, spec: Mapping[str, Any], *, most: int) -> bool:
        """False: as many as `most` have not ended."""
        with self.changing():
            if len(self.unfinished()) >= most:
                return False
            values = (id, "validating_files", int(time.time()), json.dumps(spec))
            self._run("INSERT INTO jobs (id, status, created_at, spec) VALUES (?,?,?,?)", values)
            self.tell(id, f"Created fine-tuning job: {id}")
        return True

    def job(self, id: str) -> Job | None:
        row = self._one("SELECT * FROM jobs WHERE id = ?", (id,))
        return None if row is None else _job(row)

    def jobs(self, *, after: str | None, limit: int) -> list[Job] | None:
        """The newest first; None: there is no job `after`."""
        rows = self._page("jobs", after, limit, True, "1", [])
        return None if rows is None else [_job(row) for row in rows]

    def unfinished(self) -> list[Job]:
        """The oldest first."""
        return self.of_status(*UNFINISHED)

    def of_status(self, *statuses: Status) -> list[Job]:
        marks = ",".join("?" * len(statuses))
        return [_job(row) for row in self._all(f"SELECT * FROM jobs WHERE status IN ({marks}) ORDER BY seq", statuses)]

    def counts(self) -> dict[str, int]:
        """Jobs by status."""
        return {row[0]: row[1] for row in self._all("SELECT status, count(*) FROM jobs GROUP BY status")}

    def change(self, id: str, status: Status, *, of: Sequence[Status], error: Mapping[str, Any] | None = None) -> bool:
        """Give a job another status, if it has one of these; whether it had."""
        finished = None if status in UNFINISHED else int(time.time())
        told = None if error is None else json.dumps(error)
        marks = ",".join("?" * len(of))
        statement = f"UPDATE jobs SET status=?, finished_at=?, error=? WHERE id=? AND status IN ({marks})"
        return self._run(statement, (status, finished, told, id, *of)).rowcount == 1

    def note(self, id: str, **columns: Any) -> None:
        """Write other columns of a job: spec, progress, result, served, deaths, died_at."""
        for name, value in columns.items():
            text = json.dumps(value) if isinstance(value, dict) else int(value)
            self._run(f"UPDATE jobs SET {name}=? WHERE id=?", (text, id))

    def remove_job(self, id: str) -> None:
        with self.changing():
            for statement in (
                "DELETE FROM events WHERE job=?",
                "DELETE FROM checkpoints WHERE job=?",
                "DELETE FROM jobs WHERE id=?",
            ):
                self._run(statement, (id,))

    # --- events ---------------------------------------------------------------------------------------------------

    def tell(
        self,
        job: str,
        message: str,
        *,
        level: str = "info",
        data: Mapping[str, Any] | None = None,
        step: int | None = None,
    ) -> None:
        """Add an event; with `data` it is one of metrics."""
        kind, text = ("message", None) if data is None else ("metrics", json.dumps(data))
        self._run(
            "INSERT INTO events (job, created_at, level, type, message, data, step) VALUES (?,?,?,?,?,?,?)",
            (job, int(time.time()), level, kind, message, text, step),
        )

    def events(self, job: str, *, after: int | None, limit: int) -> list[Event]:
        """The newest first."""
        rows = self._all(
            "SELECT * FROM events WHERE job=? AND seq < ? ORDER BY seq DESC LIMIT ?",
            (job, (1 << 62) if after is None else after, limit),
        )
        return [_event(row) for row in rows]

    def metrics(self, job: str) -> list[dict[str, Any]]:
        """The data of all events of metrics, in order."""
        rows = self._all("SELECT data FROM events WHERE job=? AND type='metrics' ORDER BY seq", (job,))
        return [json.loads(row[0]) for row in rows]

    def forget_after(self, job: str, step: int) -> None:
        """A job goes on from this step: what it told of later ones it will tell again."""
        with self.changing():
            self._run("DELETE FROM events WHERE job=? AND type='metrics' AND step > ?", (job, step))
            self._run("DELETE FROM checkpoints WHERE job=? AND step > ?", (job, step))

    # --- checkpoints ----------------------------------------------------------------------------------------------

    def add_checkpoint(self, job: str, step: int, metrics: Mapping[str, Any]) -> None:
        values = (job, step, int(time.time()), json.dumps(metrics))
        self._run("INSERT OR REPLACE INTO checkpoints VALUES (?,?,?,?)", values)

    def checkpoints(self, job: str) -> list[tuple[int, int, dict[str, Any]]]:
        """Step, time and metrics of each, the newest first."""
        rows = self._all("SELECT * FROM checkpoints WHERE job=? ORDER BY step DESC", (job,))
        return [(row["step"], row["created_at"], json.loads(row["metrics"])) for row in rows]

    # ------------------------------------------------------------------------------------------------------------

    def _page(
        self, table: str, after: str | None, limit: int, newest_first: bool, where: str, values: Sequence[Any]
    ) -> list[Any] | None:
        """Rows behind the one of this id; None: there is no such row."""
        if after is not None:
            last = self._one(f"SELECT seq FROM {table} WHERE id=?", (after,))
            if last is None:
                return None
            where, values = f"{where} AND seq {'<' if newest_first else '>'} ?", [*values, last[0]]
        order = "DESC" if newest_first else "ASC"
        return self._all(f"SELECT * FROM {table} WHERE {where} ORDER BY seq {order} LIMIT ?", (*values, limit))


def _file(row: Any) -> File:
    return File(row["id"], row["filename"], row["purpose"], row["bytes"], row["blob"], row["created_at"])


def _job(row: Any) -> Job:
    error = None if row["error"] is None else json.loads(row["error"])
    return Job(
        row["id"],
        row["status"],
        row["created_at"],
        row["finished_at"],
        json.loads(row["spec"]),
        error,
        json.loads(row["progress"]),
        json.loads(row["result"]),
        bool(row["served"]),
        row["deaths"],
        row["died_at"],
    )


def _event(row: Any) -> Event:
    data = None if row["data"] is None else json.loads(row["data"])
    return Event(row["seq"], row["created_at"], row["level"], row["type"], row["message"], data)
