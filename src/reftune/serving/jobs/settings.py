"""What can be chosen of fine-tuning by API, checked when a server is built; and the flags that say it, of both servers.

Must not know: HTTP, models, how jobs are run.
"""

from __future__ import annotations

import argparse
import os
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ...errors import ReftuneError
from ...files import check_writable

__all__ = ["FineTuning", "add_flags", "fine_tuning_of"]

DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
AT_LEAST_ONE = ("jobs", "max_file_bytes", "max_rows", "max_queue", "max_disk_bytes", "threads")
PREFIX = "--fine-tuning"
HELP = {
    "folder": "train too: the OpenAI fine-tuning API, its files, jobs and adapters in this folder",
    "jobs": "jobs that train at the same time (default: 1)",
    "device": "where they train: auto, cpu, cuda:0, … (default: auto, a GPU if there is one)",
    "memory": "share of a GPU's memory that a job may take, as 0.25; refused where less is free",
    "threads": "threads of a job on a CPU (default: half of the cores)",
    "nice": "how far a job stands back on a CPU, 0 to 19 (default: 5)",
    "max_file_bytes": "largest training file",
    "max_rows": "most rows of a training file",
    "max_queue": "most jobs that have not ended; more are answered 429",
    "max_disk_bytes": "most that the folder may hold; what is too much is refused",
}


@dataclass(frozen=True)
class FineTuning:
    """Raises `ReftuneError` naming the value when a field is wrong."""

    folder: Path
    jobs: int = 1
    device: str = "auto"
    memory: float | None = None
    """Share of the GPU's memory for one job; None: whatever is free."""
    threads: int = field(default_factory=lambda: max(1, (os.cpu_count() or 2) // 2))
    nice: int = 5
    max_file_bytes: int = 64 << 20
    max_rows: int = 100_000
    max_queue: int = 100
    max_disk_bytes: int = 20 << 30
    save_seconds: float = 10.0
    """Between two checkpoints of a job."""

    def __post_init__(self) -> None:
        for name in AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise ReftuneError(f"{_flag(name)} {getattr(self, name)!r} is not valid; it is at least 1")
        if not 0 <= self.nice <= 19:
            raise ReftuneError(f"{_flag('nice')} {self.nice!r} is not valid; it lies between 0 and 19")
        if not DEVICE.fullmatch(self.device):
            raise ReftuneError(f"{_flag('device')} {self.device!r} is not valid; use auto, cpu, mps, cuda or cuda:0, …")
        if self.memory is not None and not 0 < self.memory <= 1:
            raise ReftuneError(f"{_flag('memory')} {self.memory!r} is not valid; it is more than 0 and at most 1")
        check_writable(self.folder)


def add_flags(parser: Any) -> None:
    """Put the flags into a parser of either server, or into a group of one."""
    parser.add_argument(PREFIX, metavar="FOLDER", help=HELP["folder"])
    for chosen in fields(FineTuning):
        if chosen.name in HELP and chosen.name != "folder":
            kind = {"device": str, "memory": float}.get(chosen.name, int)
            parser.add_argument(_flag(chosen.name), type=kind, help=HELP[chosen.name])


def fine_tuning_of(args: argparse.Namespace) -> FineTuning | None:
    """What the flags say; None where nothing is to be trained.

    Raises:
        ReftuneError: a value is not valid, or there is one without the folder.
    """
    names = [name for name in HELP if name != "folder"]
    given = {name: value for name in names if (value := getattr(args, f"fine_tuning_{name}", None)) is not None}
    folder = getattr(args, "fine_tuning", None)
    if folder is None:
        if given:
            raise ReftuneError(f"{_flag(next(iter(given)))} needs {PREFIX} FOLDER: where files and jobs are kept")
        return None
    return FineTuning(Path(folder).absolute(), **given)


def _flag(name: str) -> str:
    return f"{PREFIX}-{name.replace('_', '-')}"
