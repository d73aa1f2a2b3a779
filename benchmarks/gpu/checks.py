"""Part 5, the tests that are marked `gpu`, one result each.

Must not know: what they test.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from ..environments import ROOT
from .common import LONGEST, Part

TESTS = "tests/tuner/test_gpu.py"
NEEDED = ("pytest", "hypothesis")


def main(given: list[str] | None = None) -> None:
    part = Part.of_command("checks", given)
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        part.skip("tests", f"not installed: {', '.join(missing)}")
        return part.finish()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tests.xml"
        command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-m", "gpu", TESTS]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        environment["REFTUNE_GPU_TESTS"] = "cuda" if part.cuda else part.device
        try:
            done = subprocess.run(
                [*command, f"--junitxml={file}"],
                cwd=ROOT,
                env=environment,
                timeout=max(1.0, part.left),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            said = done.stdout
        except subprocess.TimeoutExpired as error:
            said = error.stdout.decode(errors="replace") if isinstance(error.stdout, bytes) else str(error.stdout or "")
        if file.is_file():
            for case in ElementTree.parse(file).iter("testcase"):
                part.add(case.get("name", "?"), result_of(case))
        else:
            # it was ended before its report: its lines tell of the tests that were done
            for name, found in results_in(said).items():
                part.add(name, found)
            part.add("the others", {"error": f"the tests ended without a report: {said[-LONGEST:]}"})
    part.finish()


def results_in(said: str) -> dict[str, dict[str, Any]]:
    """Of the lines that pytest writes with -v."""
    kinds: dict[str, dict[str, Any]] = {
        "PASSED": {"passed": True},
        "FAILED": {"error": "failed; its reason was not written yet"},
        "SKIPPED": {"skipped": "skipped"},
    }
    found = re.findall(r"::(\S.*?) (PASSED|FAILED|SKIPPED)", said)
    return {name: kinds[kind] for name, kind in found}


def result_of(case: Any) -> dict[str, Any]:
    seconds = float(case.get("time", 0))
    for kind in ("failure", "error", "skipped"):
        found = case.find(kind)
        if found is not None:
            text = f"{found.get('message') or ''}"[:LONGEST]
            return {"skipped": text} if kind == "skipped" else {"error": text, "seconds": seconds}
    return {"passed": True, "seconds": seconds}


if __name__ == "__main__":
    main()
