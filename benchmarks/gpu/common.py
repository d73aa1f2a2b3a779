"""What all parts share: their options, the time they have, and their file, written whole after each measurement.

Must not know: what is measured.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures import TimeoutError as OutOfTime
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from ..environments import ROOT
from ..files import write_whole
from ..raw import machine, now
from ..settings import cores

# of a part's time, kept for its end
RESERVE = 2.0
# seconds of a part that is run by itself
ALONE = 150.0
LONGEST = 600
PACKAGES = ("torch", "triton", "transformers", "peft", "accelerate", "datasets", "numpy")
# what a reader of an error needs beside its message
FRAMES = 3


class Part:
    """One part of the run: what it was asked for, how much time is left, and what it has measured so far.

    `until` is a time of the system's clock: what begins the process takes its time too.
    """

    def __init__(self, name: str, *, out: Path, device: str, tiny: bool, until: float) -> None:
        self.name, self.device, self.tiny = name, device, tiny
        self.cuda = device.startswith("cuda")
        self.file = out / f"{name}.json"
        self.began = time.perf_counter()
        self.until = until
        self.content: dict[str, Any] = {"part": name, "complete": False, "stamp": self._stamp(), "measurements": {}}
        self._write()

    @classmethod
    def of_command(cls, name: str, given: Sequence[str] | None = None) -> Part:
        parser = argparse.ArgumentParser(prog=f"python -m benchmarks.gpu.{name}")
        parser.add_argument("--device", default="cuda")
        parser.add_argument("--tiny", action="store_true", help="toy sizes, to see that it runs")
        parser.add_argument("--out", type=Path, default=Path("results/gpu"), help="folder of the JSON files")
        parser.add_argument("--until", type=float, help="seconds since 1970; what does not fit is left out and named")
        options = parser.parse_args(given)
        torch.manual_seed(0)
        until = time.time() + ALONE if options.until is None else options.until
        return cls(name, out=options.out, device=options.device, tiny=options.tiny, until=until)

    # --- time ---------------------------------------------------------------------------------------------------------

    @property
    def left(self) -> float:
        """Seconds, less what the end takes."""
        return self.until - RESERVE - time.time()

    # --- results ------------------------------------------------------------------------------------------------------

    def add(self, key: str, measurement: dict[str, Any]) -> None:
        """Keep a measurement, in memory and in the file."""
        at = round(time.perf_counter() - self.began, 1)
        self.content["measurements"][key] = {**measurement, "at_s": at}
        self._write()
        print(f"  {self.name} {at:6.1f} s  {key}: {brief(measurement)}", flush=True)

    def attempt(
        self, key: str, measure: Callable[..., dict[str, Any]], *given: Any, needs: float = 0.0
    ) -> dict[str, Any]:
        """`measure(*given)`, if so many seconds are left; of what fails the error is kept, and the part goes on."""
        if self.left < needs:
            found: dict[str, Any] = {"skipped": f"{self.left:.0f} s were left, about {needs:.0f} are needed"}
        else:
            try:
                found = measure(*given)
            except Exception as error:  # noqa: BLE001 - whatever it is, the others are still worth having
                found = failure(error)
        if "error" in found:
            self.free()
        self.add(key, found)
        return found

    def skip(self, key: str, reason: str) -> None:
        self.add(key, {"skipped": reason})

    def finish(self) -> None:
        self.content["complete"] = True
        self._write()

    def _write(self) -> None:
        self.content["seconds"] = round(time.perf_counter() - self.began, 1)
        write_whole(self.file, json.dumps(self.content, indent=1) + "\n")

    def _stamp(self) -> dict[str, Any]:
        known = {}
        for name in PACKAGES:
            with suppress(importlib.metadata.PackageNotFoundError):
                known[name] = importlib.metadata.version(name)
        # the one that is loaded: beside a PYTHONPATH, metadata of another may be found first
        known["torch"] = torch.__version__
        return {
            "date": now(),
            "device": self.device,
            "tiny": self.tiny,
            "machine": machine(torch.get_num_threads(), self.device),
            "python": ".".join(map(str, sys.version_info[:3])),
            "cuda": torch.version.cuda,
            "versions": known,
        }

    # --- the device ---------------------------------------------------------------------------------------------------

    def synchronise(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def free(self) -> None:
        """Give memory that nothing holds any more back to the device."""
        import gc  # noqa: PLC0415 - beside what it is for

        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()


def failure(error: BaseException) -> dict[str, Any]:
    """What is kept of an error."""
    frames = [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in traceback.extract_tb(error.__traceback__)]
    # where the repository lies is nobody's business
    said = f"{type(error).__name__}: {error}".replace(f"{ROOT}/", "")
    return {"error": said[:LONGEST], "where": frames[-FRAMES:]}


def brief(measurement: dict[str, Any]) -> str:
    """A line of a measurement for the log."""
    for name in ("error", "skipped"):
        if name in measurement:
            return f"{name}: {measurement[name]}"[:200]
    plain = {k: v for k, v in measurement.items() if isinstance(v, (int, float, str, bool))}
    return ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in plain.items())[:200]


def in_processes(
    part: Part, function: Callable[..., dict[str, Any]], jobs: dict[str, tuple[Any, ...]], *, workers: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """`function(*job)` of each job in processes of their own, each result when it is there, until the part's time ends.

    With one worker they run here, one behind the other.
    """
    if workers == 1:
        for key, job in jobs.items():
            try:
                yield key, function(*job) if part.left > 0 else {"skipped": "no time was left"}
            except Exception as error:  # noqa: BLE001 - as above
                yield key, failure(error)
        return
    pool = ProcessPoolExecutor(min(workers, cores()), mp_context=multiprocessing.get_context("spawn"))
    futures = {pool.submit(function, *job): key for key, job in jobs.items()}
    missing = dict.fromkeys(jobs)
    try:
        for future in as_completed(futures, timeout=max(0.0, part.left)):
            error = future.exception()
            missing.pop(futures[future])
            yield futures[future], failure(error) if error else future.result()
    except OutOfTime:
        for key in missing:
            yield key, {"error": "it was not done when the part's time was over"}
    finally:
        # they may hang in a compiler: nobody waits for them
        for process in list(getattr(pool, "_processes", None) or {}):
            with suppress(ProcessLookupError):
                os.kill(process, 9)
        pool.shutdown(wait=False, cancel_futures=True)
