"""The command answers what needs no model before torch is loaded, and still registers ReFT before a verb begins."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from peft import get_peft_model

from reftune import ReftConfig
from reftune.cli.app import VERBS
from reftune.models import save_adapter
from tests.models import tiny_model

# the harness's help is the harness's
HELPS = [[verb, "--help"] for verb in VERBS if verb != "lm-eval"]
WRONG = (["fly"], ["--fly"], ["train", "--fly"], ["train", "--rank", "two"], ["show"], ["judge", "x"])
# Run the entry point once for each list of arguments; print exit codes, then the heavy modules that were loaded.
PROGRAM = """
import json, sys
from reftune_command import main

codes = []
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["reftune", *arguments]
    try:
        main()
    except SystemExit as end:
        codes.append(end.code)
heavy = [name for name in ("torch", "transformers", "peft", "datasets", "accelerate") if name in sys.modules]
print(json.dumps([codes, heavy]))
"""
# A verb that needs no model fails on its files; by then the package must be whole, and PEFT must know of ReFT.
BEGUN = """
import sys
from reftune_command import main

sys.argv = ["reftune", "judge", "none", "--reference", "none", "--endpoint", "http://127.0.0.1:9/v1", "--model", "m"]
try:
    main()
except SystemExit as end:
    assert end.code == 1
import peft, reftune

assert reftune.ReftConfig.__module__ == "reftune.config" and reftune.__spec__.name == "reftune"
assert peft.PeftConfig.from_peft_type(peft_type="REFT").__class__ is reftune.ReftConfig
"""


def run(program: str, *arguments: str, **environment: str) -> str:
    """What a Python program printed in a process of its own, without colours."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "100", "NO_COLOR": "1", **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def begun(*calls: list[str]) -> Any:
    return json.loads(run(PROGRAM, json.dumps(calls)).splitlines()[-1])


def test_help_version_and_wrong_usage_load_no_torch() -> None:
    codes, heavy = begun(["--help"], ["--version"], [], *HELPS, *WRONG)
    assert codes == [0, 0, 2, *(0 for _ in HELPS), *(2 for _ in WRONG)]
    assert heavy == []


def test_the_list_of_verbs_imports_none_of_them() -> None:
    program = (
        "import sys; sys.argv = ['reftune', '--help']\nfrom reftune_command import main\ntry:\n    main()\n"
        "except SystemExit:\n    print(*(name for name in sys.modules if name.startswith(('reftune.cli.', 'numpy'))))"
    )
    assert set(run(program).splitlines()[-1].split()) == {"reftune.cli.app", "reftune.cli.output"}


def test_an_adapter_is_shown_without_torch(tmp_path: Path) -> None:
    model: Any = get_peft_model(tiny_model("llama"), ReftConfig())
    save_adapter(model, tmp_path)
    assert begun(["show", str(tmp_path)], ["show", str(tmp_path), "--json"]) == [[0, 0], []]


@pytest.mark.parametrize(
    ("typed", "offered"), [("trai", "train"), ("train --res", "--resume"), ("show --po", "--positions")]
)
def test_completion_knows_verbs_and_flags_and_loads_no_torch(typed: str, offered: str) -> None:
    words = f"reftune {typed}"
    shell = {"_REFTUNE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    found = run(PROGRAM, "[[]]", **shell).splitlines()
    codes, heavy = json.loads(found.pop())
    assert found == [offered]
    assert codes == [0] and heavy == []


def test_completion_can_be_installed(tmp_path: Path) -> None:
    """As a shell that calls it would see it; another home, so that nobody's is written to."""
    program = "import sys; sys.argv = ['reftune', '--install-completion']; from reftune_command import main; main()"
    environment = {**os.environ, "HOME": str(tmp_path)}
    script = '"$@"; exit $?'
    done = subprocess.run(
        ["bash", "-c", script, "bash", sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert re.search("_REFTUNE_COMPLETE", "".join(path.read_text() for path in tmp_path.rglob("reftune.sh")))


@pytest.mark.slow
def test_a_verb_begins_with_reft_registered() -> None:
    run(BEGUN)
