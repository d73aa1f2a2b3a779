"""`reftune with`: PEFT knows ReFT in a command's Python processes, and nothing else changes for them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from reftune.cli.with_reft import environment
from tests.cli.conftest import Command, assert_user_error

# The real PEFT takes seconds to import; these are of the same names.
FAKE = {
    "peft/__init__.py": "KNOWN = []\nfrom . import inner\n",
    "peft/inner.py": "",
    "reftune/__init__.py": "import peft\npeft.KNOWN.append('REFT')\n",
    "sitecustomize.py": "import sys\nsys.theirs = True\n",
    "program.py": """
import importlib.util, subprocess, sys
assert sys.theirs and "peft" not in sys.modules and "reftune" not in sys.modules
assert importlib.util.find_spec("peft") is not None and "reftune" not in sys.modules
import peft
assert peft.KNOWN == ["REFT"], peft.KNOWN
assert type(peft.__spec__.loader).__module__ == type(peft.__loader__).__module__ == "_frozen_importlib_external"
import importlib.resources
assert importlib.resources.files("peft").joinpath("inner.py").is_file()
if len(sys.argv) == 1:
    sys.exit(subprocess.run([sys.executable, __file__, "child"]).returncode)
""",
}


def ran(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    ours = environment()["PYTHONPATH"].split(os.pathsep)[0]
    given = {**os.environ, "PYTHONPATH": os.pathsep.join([ours, str(folder)])}
    return subprocess.run([sys.executable, *words], env=given, capture_output=True, text=True, timeout=60)


def test_children_know_reft_and_their_own_start_runs(tmp_path: Path) -> None:
    for name, text in FAKE.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    done = ran(tmp_path, str(tmp_path / "program.py"))
    assert (done.returncode, done.stderr) == (0, "")
    (tmp_path / "reftune/__init__.py").write_text("raise ImportError('too old')\n")
    done = ran(tmp_path, "-c", "import peft")
    assert done.returncode == 0
    assert done.stderr.startswith("reftune with: ") and "cannot import reftune (too old)" in done.stderr


@pytest.mark.slow
def test_the_command_takes_the_place_of_ours(script: Command) -> None:
    done = script("with", sys.executable, "-c", "import os, sys; print(os.environ['PYTHONPATH']); sys.exit(7)")
    assert done.code == 7 and done.out.split(os.pathsep)[0].endswith("startup")


def test_no_such_command(reftune: Command) -> None:
    assert_user_error(reftune("with", "no-such-command", "--flag"), "'no-such-command'", "reftune with python train.py")
    assert reftune("with").code == 2
