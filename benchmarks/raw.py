"""Raw measurements, one file a group: written whole after each measurement, so that a run can be taken up again.

Must not know: what was measured.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
from pathlib import Path
from typing import Any

from .environments import FOLDER, OURS, WITH_TORCH, versions_of
from .files import write_whole
from .settings import Measurement, cores

RESULTS = Path(__file__).parent / "results"
RAW = RESULTS / "raw"


class Raw:
    """The measurements of a group, in its file."""

    def __init__(self, group: str, folder: Path = RAW) -> None:
        self.file = folder / f"{group}.json"
        self.stamp: dict[str, Any] = {}
        self.complete = False
        self.measurements: dict[str, Measurement] = {}
        if self.file.is_file():
            content = json.loads(self.file.read_text(encoding="utf-8"))
            self.stamp, self.complete = content["stamp"], content["complete"]
            self.measurements = content["measurements"]

    def begin(self, stamp: dict[str, Any], *, resume: bool) -> set[str]:
        """Ready for a run; the keys that are measured already, none unless it is a run taken up again."""
        if not resume or stamp["threads"] != self.stamp.get("threads"):
            self.measurements = {}
        self.stamp, self.complete = stamp, False
        return set(self.measurements)

    def add(self, key: str, measurement: Measurement) -> None:
        self.measurements[key] = {**measurement, "measured": now()}
        self._write()

    def finish(self) -> None:
        self.complete = True
        self._write()

    def _write(self) -> None:
        content = {"stamp": self.stamp, "complete": self.complete, "measurements": self.measurements}
        write_whole(self.file, json.dumps(content, indent=1) + "\n")


def now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def stamp(command: str, threads: int) -> dict[str, Any]:
    """Date, command, machine and versions of a run."""
    environments = [OURS, *(name for name in WITH_TORCH if (FOLDER / name / ".installed").is_file())]
    return {
        "date": now(),
        "command": command,
        "threads": threads,
        "machine": machine(threads),
        "python": platform.python_version(),
        "versions": {name: versions_of(name) for name in environments},
    }


def machine(threads: int, device: str = "cpu") -> str:
    """In words: processor, cores, memory, accelerator."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    text = f"{processor()}, {cores()} cores ({threads} used), {memory:.0f} GiB"
    return f"{accelerator()}, {text}" if device.startswith("cuda") else text


def processor() -> str:
    info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.is_file() else []
    return names[0] if names else platform.machine()


def accelerator() -> str:
    import torch  # noqa: PLC0415 - only where there is a GPU; the driver of CPU runs stays small

    return torch.cuda.get_device_name()


def slug() -> str:
    """The hardware, for a file's name."""
    text = f"{processor()} {cores()} cores"
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
