"""`reftune chat` from a pipe."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from reftune import generation
from reftune.data.style import PromptStyle
from tests.cli.conftest import Command, assert_user_error
from tests.training.text_models import PAIRS

ONE, TWO = (pair["prompt"] for pair in PAIRS[:2])


def answers(reftune: Command, adapter: Path, *lines: str, more: tuple[str, ...] = ()) -> list[str]:
    outcome = reftune("chat", adapter, "--json", "--max-new-tokens", 5, *more, stdin="\n".join(lines) + "\n")
    assert outcome.code == 0, outcome.err
    assert set(outcome.json) == {"adapter", "turns"}
    return [turn["assistant"] for turn in outcome.json["turns"]]


def test_questions_stand_alone(reftune: Command, adapter: Path) -> None:
    assert answers(reftune, adapter, ONE, "", TWO) == answers(reftune, adapter, ONE) + answers(reftune, adapter, TWO)


def test_quit_ends(reftune: Command, adapter: Path) -> None:
    assert answers(reftune, adapter, ONE, "/quit", TWO) == answers(reftune, adapter, ONE)


def test_as_generate_answers(reftune: Command, adapter: Path) -> None:
    outcome = reftune("generate", adapter, "--json", "--max-new-tokens", 5, "-p", ONE)
    assert answers(reftune, adapter, ONE) == [outcome.json["outputs"][0]["output"]]


def test_the_base_model_answers_without_the_adapter(reftune: Command, adapter: Path) -> None:
    adapted, base, again = answers(reftune, adapter, ONE, f"/base {ONE}", ONE)
    assert adapted == again != base


def test_memory_and_reset(reftune: Command, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    original = generation.generate_texts

    def recorded(model: object, tokenizer: object, prompts: list[dict], **more: object) -> list[str]:
        seen.append([turn["role"] for turn in prompts[0]["messages"]])
        return original(model, tokenizer, prompts, **more)

    monkeypatch.setattr(generation, "generate_texts", recorded)
    answers(reftune, adapter, ONE, f"/base {ONE}", TWO, "/reset", TWO, more=("--memory",))
    # what the base model said is not remembered
    assert seen == [["user"], ["user", "assistant", "user"], ["user", "assistant", "user"], ["user"]]


def test_memory_without_a_conversation_says_so(reftune: Command, adapter: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(adapter, tmp_path / "copy"))
    (copy / "reftune.json").write_text('{"style": "prompt"}')
    outcome = reftune("chat", copy, "--memory", "--max-new-tokens", 1, stdin=ONE)
    assert "--memory has no effect" in outcome.err


def test_the_style_can_be_chosen(reftune: Command, adapter: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(adapter, tmp_path / "copy"))
    PromptStyle("prompt").write(copy)
    bare = answers(reftune, copy, ONE)
    (copy / "reftune.json").unlink()
    assert answers(reftune, copy, ONE, more=("--prompt-style", "prompt")) == bare != answers(reftune, adapter, ONE)
    outcome = reftune("chat", copy, "--max-new-tokens", 1, stdin=ONE)
    assert "has no reftune.json" in outcome.err and "--prompt-style" in outcome.err


def test_plain_output_is_one_line_an_answer(reftune: Command, adapter: Path) -> None:
    outcome = reftune("chat", adapter, "--max-new-tokens", 5, stdin=f"{ONE}\n{TWO}\n")
    assert outcome.out.splitlines() == answers(reftune, adapter, ONE, TWO)
    assert outcome.err == ""


@pytest.mark.parametrize("line", ["/base", "/base  ", "/help", "/quit now"])
def test_unknown_commands_are_not_sent_to_the_model(reftune: Command, adapter: Path, line: str) -> None:
    outcome = reftune("chat", adapter, "--json", stdin=f"{line}\n")
    assert outcome.json["turns"] == []
    assert "/reset" in outcome.err


def test_nothing_asked(reftune: Command, adapter: Path) -> None:
    assert answers(reftune, adapter, "") == []


def test_no_adapter(reftune: Command, tmp_path: Path) -> None:
    assert_user_error(reftune("chat", tmp_path, stdin=ONE), str(tmp_path), "no adapter")


@pytest.mark.slow
def test_script(script: Command, adapter: Path) -> None:
    outcome = script("chat", adapter, "--json", "--max-new-tokens", 2, stdin=f"{ONE}\n/base {ONE}\n")
    assert outcome.code == 0, outcome.err
    assert [turn["user"] for turn in outcome.json["turns"]] == [ONE, f"/base {ONE}"]
