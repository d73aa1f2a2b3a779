"""`python -m benchmarks.run all | quick | serving | report`: measures, writes the report, prints the targets.

`all` measures every group that does not need vLLM, beside every peer.  `quick` measures steps of ours and of the
floor, and writes no file.  `serving` measures vLLM with and without adapters and adds to the report.  `report` makes
the report anew from the raw measurements.  What needs a GPU is in `benchmarks.gpu`.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from .raw import RAW, RESULTS, Raw, stamp
from .report import GROUPS, module_of, write_report
from .settings import DATA_DIR, Settings, cores
from .targets import all_targets
from .wanted import targets_table
from .workers import stderr

# what has a verb of its own: it needs vLLM
OWN_VERB = ("serving",)
CPU_GROUPS = tuple(group for group in GROUPS if group not in OWN_VERB)


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("verb", choices=("all", "quick", *OWN_VERB, "report"))
    parser.add_argument("--only", action="append", choices=CPU_GROUPS, help="of `all`: this group, may be repeated")
    parser.add_argument("--resume", action="store_true", help="keep the measurements of a run that was broken off")
    parser.add_argument("--no-peers", action="store_true", help="without the methods that need their own environment")
    parser.add_argument("--threads", type=int, default=cores(), help="of every method (default: the cores)")
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of rounds")
    parser.add_argument("--fraction", type=float, default=0.25, help="of the ragged batches that peers run")
    parser.add_argument("--data-dir", type=Path, default=DATA_DIR, help="holds commonsense/ (default: $REFTUNE_DATA)")
    parser.add_argument("--tiny", action="store_true", help="toy shapes, to see that it runs; not for the report")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the report")
    options = parser.parse_args(given)
    if options.tiny and options.results == RESULTS and options.verb != "quick":
        parser.error("--tiny is not for the report: name another folder with --results")
    return options


def settings_of(given: argparse.Namespace) -> Settings:
    return Settings(
        threads=given.threads,
        peers=not given.no_peers,
        quick=given.verb == "quick",
        scale=given.scale,
        fraction=given.fraction,
        data_dir=given.data_dir,
        tiny=given.tiny,
    )


def groups_of(given: argparse.Namespace) -> tuple[str, ...]:
    if given.verb == "all":
        return tuple(given.only or CPU_GROUPS)
    return {"quick": ("step",), "report": ()}.get(given.verb, (given.verb,))


def measure(group: str, settings: Settings, folder: Path, command: str, *, resume: bool) -> None:
    """All measurements of a group, each written when it is done."""
    raw = Raw(group, folder)
    done = raw.begin(stamp(command, settings.threads), resume=resume)
    for key, measurement in module_of(group).measure(settings, done):
        raw.add(key, measurement)
    raw.finish()


def quick(settings: Settings) -> None:
    """Tables on the terminal; the report of a full run stays what it is."""
    module = module_of("step")
    measurements = dict(module.measure(settings, set()))
    print("\n\n".join(module.tables(measurements)))
    known = [target for target in all_targets({"step": measurements}) if target["value"] is not None]
    print("\n" + targets_table(known))


def main(given: list[str] | None = None) -> None:
    options = arguments(given)
    settings = settings_of(options)
    command = "python -m benchmarks.run " + " ".join(sys.argv[1:] if given is None else given)
    begin = time.perf_counter()
    if options.verb == "quick":
        quick(settings)
    else:
        folder = options.results / RAW.name
        for group in groups_of(options):
            measure(group, settings, folder, command, resume=options.resume)
        file = write_report(raw=folder, results=options.results, plot=not settings.tiny)
        targets = all_targets({g: Raw(g, folder).measurements for g in GROUPS})
        print(targets_table(targets))
        stderr(f"report: {file.name}")
    stderr(f"{time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
