"""Help, version, exit codes: what all commands have in common."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path

import pytest

from reftune import cli
from reftune.cli import app as application
from tests.cli.conftest import Command, assert_user_error

COMMANDS = ("demo", "train", "generate", "chat", "eval", "compare", "judge", "memorise", "split-turns", "show")


def test_help_has_one_line_a_command(reftune: Command) -> None:
    outcome = reftune("--help")
    assert outcome.code == 0
    lines = [line.strip("│ ") for line in outcome.out.splitlines()]
    listed = [line for line in lines if line.split(" ")[0] in COMMANDS]
    assert [line.split(" ")[0] for line in listed] == list(COMMANDS)
    assert all(line.endswith(".") for line in listed), listed


@pytest.mark.parametrize("command", COMMANDS)
def test_each_help_has_an_example_that_is_not_broken(reftune: Command, command: str) -> None:
    outcome = reftune(command, "--help")
    assert outcome.code == 0
    assert "--json" in outcome.out
    assert "Examples:" in outcome.out
    document = application.VERBS[command].command.callback.__doc__ or ""
    examples = [text.strip() for text in document.splitlines() if text.startswith("    ")]
    assert examples
    # as it stands, ready to be copied
    assert all(example in outcome.out for example in examples)
    assert all(len(text) <= 78 for text in document.splitlines())


@pytest.mark.parametrize("verb", application.VERBS.values(), ids=lambda verb: verb.name)
def test_the_list_says_what_the_verb_itself_says_first(verb: application.Verb) -> None:
    assert verb.command.get_short_help_str(200).split(" `")[0] == verb.summary


def test_version(reftune: Command) -> None:
    outcome = reftune("--version")
    assert outcome.code == 0
    assert outcome.out.startswith("reftune ")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("fly",),
        ("show",),
        ("show", "a", "b"),
        ("generate", "x"),
        ("generate", "x", "--prompt", "hi", "--batch-size", "0"),
        ("train",),
        ("train", "--model", "m"),
        ("train", "--rank", "two"),
        ("demo", "--epochs", "0"),
    ],
)
def test_wrong_usage_exits_with_2(reftune: Command, arguments: tuple[str, ...]) -> None:
    outcome = reftune(*arguments)
    assert outcome.code == 2
    assert "Traceback" not in outcome.err


def test_errors_of_ours_keep_their_traceback(reftune: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise AssertionError("a bug")

    monkeypatch.setattr("reftune.adapter_files.is_adapter", broken)
    with pytest.raises(AssertionError, match="a bug"):
        reftune("show", "x")


def test_debugging_keeps_the_traceback_of_all(reftune: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFTUNE_DEBUG", "1")
    with pytest.raises(ValueError, match="x3"):
        reftune("show", "x", "--positions", "x3")


def test_interrupted(reftune: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("reftune.adapter_files.is_adapter", interrupted)
    found = reftune("show", "x")
    assert found.code == 130 and "interrupted" in found.err


def test_missing_extra_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None if name == "rich" else object())
    with pytest.raises(SystemExit, match=r"needs rich: run `pip install 'reftune\[cli\]'`"):
        cli.main()


def test_libraries_are_quiet_before_they_are_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "warnoptions", [])
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        with warnings.catch_warnings(record=True) as caught:
            cli._quiet_imports()
            warnings.warn("old", FutureWarning, stacklevel=1)
            warnings.warn("mind this", UserWarning, stacklevel=1)
    finally:
        root.handlers[:], root.level = handlers, level
    assert [str(warning.message) for warning in caught] == ["mind this"]
    assert not logging.getLogger("bitsandbytes").isEnabledFor(logging.WARNING)
    assert logging.getLogger("reftune").isEnabledFor(logging.WARNING)


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "--model", "none", "--data", "none.jsonl"),
        ("eval", "none", "--tasks", "boolq"),
        ("compare", "--model", "none", "--tasks", "boolq"),
        ("judge", "none.json", "--reference", "none.json", "--endpoint", "http://localhost:1", "--model", "none"),
        ("memorise", "--model", "none", "--text", "random"),
        ("demo",),
    ],
    ids=lambda arguments: arguments[0],
)
def test_an_output_that_is_a_file_is_told_first(reftune: Command, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    file = tmp_path / "out"
    file.write_text("mine")
    assert_user_error(reftune(*arguments, "--output", file), "out' is a file, not a folder")
    assert file.read_text() == "mine"
