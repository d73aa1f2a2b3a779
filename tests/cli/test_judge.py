"""`reftune judge`: files in, a win rate out, against a judge on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Command, Outcome, assert_user_error
from tests.evaluation.judge.judge_server import Answered, Asked, prefers_longer, serving

KEY = "sk-very-secret-123"
ANSWERS = {
    "Greet.": ("Good morning to you.", "Hi."),
    "Count.": ("1", "1, 2, 3, 4"),
    "Name a fish.": ("a cod", "a ray"),
    "Say it.": ("It.", "It."),
}
SCORES = [1.0, 0.0, 0.5, 0.5]


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return write(tmp_path, ANSWERS)


def write(folder: Path, answers: dict[str, tuple[str, str]]) -> tuple[Path, Path]:
    """Outputs and reference, in Alpaca-Eval's format."""
    for place, name in enumerate(("mine", "theirs")):
        rows = [
            {"instruction": text, "output": both[place], "generator": f"{name} 1", "dataset": "d"}
            for text, both in answers.items()
        ]
        (folder / f"{name}.json").write_text(json.dumps(rows))
    return folder / "mine.json", folder / "theirs.json"


def arguments(files: tuple[Path, Path], url: str, *more: object) -> tuple[Any, ...]:
    return ("judge", files[0], "--reference", files[1], "--endpoint", url, "--model", "gpt-x", *more)


def texts_below(folder: Path) -> str:
    return "".join(file.read_text() for file in folder.rglob("*") if file.is_file())


def assert_stopped(outcome: Outcome, *parts: str) -> None:
    """As `assert_user_error`, but the progress was shown before."""
    assert outcome.code == 1, outcome
    assert outcome.out == ""
    line = outcome.err.strip().splitlines()[-1]
    assert line.startswith("reftune: ") and all(part in line for part in parts), outcome.err


def test_one_object_and_the_files(reftune: Command, files: tuple[Path, Path]) -> None:
    with serving(prefers_longer) as server:
        outcome = reftune(*arguments(files, server.url, "--json"))
    assert outcome.code == 0, outcome.err
    assert outcome.json["win_rate"] == pytest.approx(sum(SCORES) / 4)
    assert outcome.json["low"] <= outcome.json["win_rate"] <= outcome.json["high"]
    counts = {"n": 4, "wins": 1, "ties": 2, "losses": 1, "identical": 1, "unreadable": 0, "without_reference": 0}
    names = {"generator": "mine 1", "reference_generator": "theirs 1", "judge": "gpt-x"}
    assert outcome.json.items() >= {**counts, **names, "endpoint": f"{server.url}/chat/completions"}.items()
    folder = files[0].with_name("mine-judged")
    assert json.loads((folder / "summary.json").read_text()) == outcome.json
    assert outcome.json["judgements"] == str(folder / "judgements.jsonl")
    assert len((folder / "judgements.jsonl").read_text().splitlines()) == 6
    assert {asked.body["model"] for asked in server.asked} == {"gpt-x"}


def test_in_the_terminal(reftune: Command, files: tuple[Path, Path], tmp_path: Path) -> None:
    with serving(lambda asked: "?" if asked.texts[0] == "Greet." else "1") as server:
        outcome = reftune(*arguments(files, server.url, "--output", tmp_path / "there"))
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert lines[0] == "mine 1 against theirs 1: win rate 0.500 (0.500 to 0.500), 0 won, 3 tied, 0 lost"
    assert lines[1] == "the answer shown first is preferred 1.000 of the time; orders disagree on 2"
    assert lines[2] == "1 not counted: a reply was no verdict"
    assert (tmp_path / "there" / "summary.json").exists()


def test_outputs_of_the_runner_are_read_as_they_are(reftune: Command, files: tuple[Path, Path]) -> None:
    runner = files[0].with_name("instruct.jsonl")
    rows = [{"id": 0, "prompt": "…", "instruction": "Greet.", "dataset": "d", "output": "Good morning."}]
    rows.append({**rows[0], "id": 1, "instruction": "Nobody answered this."})
    runner.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with serving(prefers_longer) as server:
        outcome = reftune(*arguments((runner, files[1]), server.url, "--json"))
    assert (outcome.json["n"], outcome.json["wins"], outcome.json["without_reference"]) == (1, 1, 1)
    assert outcome.json["generator"] == "instruct"


def test_limit_draws_the_same_pairs_each_time(reftune: Command, tmp_path: Path) -> None:
    files = write(tmp_path, {f"Do {i}.": ("long answer", "short") for i in range(20)})
    with serving(prefers_longer) as server:
        first = reftune(*arguments(files, server.url, "--limit", 5, "--json"))
        again = reftune(*arguments(files, server.url, "--limit", 5, "--json"))
    assert (first.json["n"], first.json["asked"]) == (5, 10)
    assert (again.json["n"], again.json["asked"], again.json["kept"]) == (5, 0, 10)


def test_options_reach_the_endpoint(reftune: Command, files: tuple[Path, Path]) -> None:
    with serving(prefers_longer) as server:
        reftune(*arguments(files, server.url, "--max-tokens", 500, "--json"))
        assert {asked.body["max_tokens"] for asked in server.asked} == {500}
        server.asked.clear()
        reftune(*arguments(files, server.url, "--max-tokens", 0, "--concurrency", 1, "--json"))
        assert len(server.asked) == 6
        assert not any("max_tokens" in asked.body for asked in server.asked)


def test_the_key_goes_to_the_endpoint_and_nowhere_else(
    reftune: Command, files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def echo(asked: Asked) -> str:
        return f"1\nYou are {asked.headers['Authorization']}"

    monkeypatch.setenv("JUDGE_KEY", f"{KEY}\n")
    with serving(echo) as server:
        outcome = reftune(*arguments(files, server.url, "--api-key-env", "JUDGE_KEY", "--json"))
        assert outcome.code == 0, outcome.err
        assert {asked.headers["Authorization"] for asked in server.asked} == {f"Bearer {KEY}"}
        assert all(KEY not in json.dumps(asked.body) + asked.path for asked in server.asked)
        assert "You are Bearer ***" in texts_below(tmp_path)
        assert KEY not in texts_below(tmp_path) + outcome.out + outcome.err
        server.answer = lambda asked: Answered(401, f'{{"error": "no such key {KEY}"}}')
        again = arguments(files, server.url, "--api-key-env", "JUDGE_KEY", "--output", tmp_path / "new")
        outcome = reftune(*again)
    assert_stopped(outcome, "401", "no such key ***")
    assert KEY not in texts_below(tmp_path) + outcome.err


def test_the_usual_variable_is_taken_if_it_is_set(
    reftune: Command, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(prefers_longer) as server:
        reftune(*arguments(files, server.url, "--output", files[0].with_name("a")))
        assert not any("Authorization" in asked.headers for asked in server.asked)
        server.asked.clear()
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        reftune(*arguments(files, server.url, "--output", files[0].with_name("b")))
        assert {asked.headers["Authorization"] for asked in server.asked} == {f"Bearer {KEY}"}
        assert_user_error(reftune(*arguments(files, server.url, "--api-key-env", "NOT_THERE")), "'NOT_THERE'")


def test_what_a_user_can_mend(reftune: Command, files: tuple[Path, Path], tmp_path: Path) -> None:
    nowhere = "http://127.0.0.1:9/v1"
    assert_user_error(reftune(*arguments((tmp_path / "no.json", files[1]), nowhere)), "no.json", "no such file")
    assert_user_error(reftune(*arguments(files, "localhost")), "'localhost'", "https://host/v1")
    other = tmp_path / "other.json"
    other.write_text(json.dumps([{"instruction": "Else.", "output": "x"}]))
    assert_user_error(reftune(*arguments((other, files[1]), nowhere)), "'Else.'", "'Greet.'")
    with serving(lambda asked: Answered(404, '{"error": {"message": "no model gpt-x"}}')) as server:
        assert_stopped(reftune(*arguments(files, server.url)), "404", "no model gpt-x", server.url)
    assert not (tmp_path / "mine-judged").exists()


def test_a_run_that_breaks_off_says_what_is_kept(reftune: Command, files: tuple[Path, Path], tmp_path: Path) -> None:
    with serving(prefers_longer) as server:
        server.answer = lambda asked: prefers_longer(asked) if len(server.asked) < 3 else Answered(402, "out of money")
        outcome = reftune(*arguments(files, server.url, "--concurrency", 1))
        assert_stopped(outcome, "402", "out of money", "judgements.jsonl", "goes on")
        server.answer = prefers_longer
        outcome = reftune(*arguments(files, server.url, "--json"))
    assert (outcome.json["kept"], outcome.json["asked"], outcome.json["n"]) == (2, 4, 4)


def test_pairs_that_are_equal_are_no_score_alone(reftune: Command, files: tuple[Path, Path]) -> None:
    with serving(lambda asked: "?") as server:
        outcome = reftune(*arguments(files, server.url, "--json"))
    assert_stopped(outcome, "no pair that was asked about has a score: of 4, 3 got a reply that is no verdict")


def test_no_score_is_an_error(reftune: Command, tmp_path: Path) -> None:
    files = write(tmp_path, {"Greet.": ("Hello.", "Hi.")})
    with serving(lambda asked: "Both are fine.") as server:
        outcome = reftune(*arguments(files, server.url, "--json"))
    assert_stopped(outcome, "of 1", "1 got a reply that is no verdict")
    assert json.loads((tmp_path / "mine-judged" / "summary.json").read_text())["win_rate"] is None


@pytest.mark.slow
def test_a_killed_run_goes_on(reftune: Command, tmp_path: Path) -> None:
    """Killed as hard as can be, in the middle: nothing that was judged is asked again."""
    files = write(tmp_path, {f"Do {i}.": ("long answer", "short") for i in range(30)})
    judgements = tmp_path / "mine-judged" / "judgements.jsonl"

    def slowly(asked: Asked) -> str:
        time.sleep(0.1)
        return prefers_longer(asked)

    with serving(slowly) as server:
        words = [str(word) for word in arguments(files, server.url, "--concurrency", 2)]
        program = str(Path(sys.executable).with_name("reftune"))
        with subprocess.Popen([program, *words], env={**os.environ, "HF_HUB_OFFLINE": "1"}) as process:
            deadline = time.monotonic() + 100
            while not (judgements.exists() and judgements.read_text().count("\n") >= 5):
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
        kept = judgements.read_text().count("\n")
        assert 5 <= kept < 60
        server.answer = prefers_longer
        time.sleep(0.3)  # what was under way when it died
        server.asked.clear()
        outcome = reftune(*arguments(files, server.url, "--json"))
    assert (outcome.json["kept"], outcome.json["asked"]) == (kept, 60 - kept)
    assert len(server.asked) == 60 - kept
    assert (outcome.json["n"], outcome.json["win_rate"]) == (30, 1.0)
