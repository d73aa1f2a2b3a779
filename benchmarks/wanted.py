"""A target, the table of several, and `latest.json`.

A target that could not be measured, for want of a machine or because a method failed, has no value, and whether it is
met is not known.

Must not know: which targets there are, what is measured.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .files import write_whole
from .stats import rounded
from .tables import table


@dataclass(frozen=True)
class Target:
    """One line of the table of targets."""

    name: str
    value: Callable[[Any], float]
    wanted: float
    at_most: bool = False

    def measured(self, measurements: Any) -> dict[str, Any]:
        """As `latest.json` has it."""
        sign = "at most" if self.at_most else "at least"
        row: dict[str, Any] = {"name": self.name, "value": None, "wanted": f"{sign} {self.wanted:g}", "met": None}
        try:
            value = self.value(measurements)
        except (KeyError, ValueError):
            # a group, a measurement or a method that is not there
            return row
        met = value <= self.wanted if self.at_most else value >= self.wanted
        return {**row, "value": float(rounded(value, 4).replace(",", "")), "met": met}


def targets_table(targets: list[dict[str, Any]]) -> str:
    rows = []
    for target in targets:
        value = "not measured" if target["value"] is None else f"{target['value']:g}"
        met = {True: "met", False: "not met", None: "–"}[target["met"]]
        rows.append([target["name"], value, target["wanted"], met])
    return table(("target", "measured", "wanted", ""), rows)


def write_latest(file: Path, targets: list[dict[str, Any]]) -> None:
    """`latest.json`: these are all those of a CPU, or all those of a GPU; those of the other stay as they are."""
    known = json.loads(file.read_text(encoding="utf-8"))["targets"] if file.is_file() else []
    ours = {on_gpu(target) for target in targets}
    others = [target for target in known if on_gpu(target) not in ours]
    write_whole(file, json.dumps({"targets": sorted([*targets, *others], key=on_gpu)}, indent=1) + "\n")


def on_gpu(target: dict[str, Any]) -> bool:
    return target["name"].startswith("GPU")
