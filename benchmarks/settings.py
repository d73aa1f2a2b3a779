"""What a run is told: threads, repetitions, which methods.

Must not know: what is measured.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .environments import ROOT
from .methods import METHODS, Method
from .workers import stderr

# the data sets are not part of the repository
DATA_DIR = Path(os.environ.get("REFTUNE_DATA") or ROOT.parent / "shared" / "data")


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Settings:
    """The same for all groups."""

    threads: int
    peers: bool = True
    quick: bool = False
    scale: float = 1.0
    """Of the number of rounds."""
    fraction: float = 0.25
    """Of the ragged batches, for methods that do not run whole epochs."""
    data_dir: Path = DATA_DIR
    tiny: bool = False
    log: Callable[[str], None] = stderr

    def rounds(self, count: int) -> int:
        return max(1, round(count * self.scale))

    def methods(self, names: Sequence[str]) -> list[Method]:
        """Those of these names that this run has."""
        return [METHODS[name] for name in names if self.peers or not METHODS[name].is_peer]


Measurement = dict[str, Any]
