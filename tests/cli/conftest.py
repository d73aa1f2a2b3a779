"""The command as a user runs it: in this process, which is quick, or as the installed script.

Must not know: what is tested.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from reftune.cli.app import run
from reftune.training import RunConfig, train_run
from tests.training.text_models import CHATS, save_base


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one object on stdout."""
        lines = self.out.splitlines()
        assert len(lines) == 1, self.out
        return json.loads(lines[0])


Command = Callable[..., Outcome]


@pytest.fixture
def reftune(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs `reftune ARGUMENTS` in this process, errors and exit codes included."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("REFTUNE_DEBUG", raising=False)

    def command(*arguments: object, stdin: str | None = None) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["reftune", *map(str, arguments)])
        if stdin is not None:
            monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        code: Any = 0
        try:
            run()
        except SystemExit as error:
            code = error.code or 0
        out, err = capsys.readouterr()
        return Outcome(code, out, err)

    return command


@pytest.fixture(scope="session")
def script() -> Command:
    """Runs the installed script in a process of its own."""

    def command(*arguments: object, stdin: str | None = None, timeout: float = 120, **environment: str) -> Outcome:
        program = Path(sys.executable).with_name("reftune")
        done = subprocess.run(
            [str(program), *map(str, arguments)],
            capture_output=True,
            text=True,
            encoding="utf-8",
            input=stdin or "",
            timeout=timeout,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment},
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    return command


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained far enough that its answers are not the base's."""
    folder = tmp_path_factory.mktemp("trained") / "adapter"
    training = {"learning_rate": 5e-2, "num_train_epochs": 10, "save_strategy": "no", "disable_tqdm": True}
    reft = {"r": 2, "positions": "f1+l2"}
    train_run(RunConfig(model=str(base), data=list(CHATS), output=str(folder), reft=reft, training=training))
    return folder


def assert_user_error(outcome: Outcome, *parts: str) -> None:
    """Exit code 1, nothing on stdout, one line on stderr that has all the parts."""
    assert outcome.code == 1, outcome
    assert outcome.out == ""
    lines = [line for line in outcome.err.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("reftune: "), outcome.err
    assert all(part in lines[0] for part in parts), lines[0]
