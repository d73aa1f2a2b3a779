"""The report of a run: tables of all groups, the targets, a plot; and `latest.json`.

Must not know: how things are measured.
"""

from __future__ import annotations

import importlib
import subprocess
from pathlib import Path
from typing import Any

from .environments import python_of
from .files import write_whole
from .raw import RAW, RESULTS, Raw, slug
from .targets import all_targets
from .wanted import targets_table, write_latest
from .workers import stderr

GROUPS = ("step", "ragged", "job", "generate", "orthonormal", "scaling", "serving")


def module_of(group: str) -> Any:
    """The module that measures a group and lays out its tables."""
    return importlib.import_module(f"benchmarks.bench_{group}")


def markdown(raws: dict[str, Raw], targets: list[dict[str, Any]], plot: str | None) -> str:
    """The report; each group under its own stamp, since groups may have been measured at different times."""
    parts = ["# Benchmarks", "## Targets", targets_table(targets)]
    if plot is not None:
        parts.append(f"![Steps of each method, in units of ours]({plot})")
    for group, raw in raws.items():
        module = module_of(group)
        parts.append(f"## {module.TITLE}")
        parts.append(stamp_text(raw))
        parts.extend(module.tables(raw.measurements))
    return "\n\n".join(parts) + "\n"


def stamp_text(raw: Raw) -> str:
    stamp = raw.stamp
    versions = "; ".join(
        f"{name}: " + ", ".join(f"{package} {version}" for package, version in packages.items())
        for name, packages in stamp["versions"].items()
    )
    partial = "" if raw.complete else " **Incomplete.**"
    return f"`{stamp['command']}`, {stamp['date']}, {stamp['machine']}. Python {stamp['python']}; {versions}.{partial}"


def make_plot(source: Path, target: Path) -> bool:
    """By a program in an environment of its own, since nothing else needs matplotlib."""
    try:
        subprocess.run(
            [python_of("plot"), str(Path(__file__).parent / "plot.py"), str(source), str(target)], check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        stderr(f"no plot: {error}")
        return False
    return True


def write_report(*, raw: Path = RAW, results: Path = RESULTS, plot: bool = True) -> Path:
    """Report and `latest.json` from the raw files that are there."""
    raws = {group: Raw(group, raw) for group in GROUPS}
    raws = {group: content for group, content in raws.items() if content.measurements}
    if not raws:
        raise FileNotFoundError(f"no measurements in {raw.name}/")
    targets = all_targets({group: content.measurements for group, content in raws.items()})
    date = max(content.stamp["date"] for content in raws.values())[:10]
    file = results / f"{date}_{slug()}.md"
    picture = file.with_suffix(".svg")
    drawn = plot and "step" in raws and make_plot(raws["step"].file, picture)
    write_whole(file, markdown(raws, targets, picture.name if drawn else None))
    write_latest(results / "latest.json", targets)
    return file
