"""`reftune generate`: prompts from flags and files, as the adapter was trained."""

from __future__ import annotations

import csv
import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from reftune.cli.output import say
from reftune.data.style import STYLES, PromptStyle
from reftune.evaluation.tasks import TASKS
from reftune.generation import generate_texts
from reftune.models import load_adapter
from tests.cli.conftest import Command, assert_user_error
from tests.training.text_models import CHATS, PAIRS

PROMPTS = [pair["prompt"] for pair in PAIRS]


def outputs(outcome: Any) -> list[str]:
    assert outcome.code == 0, outcome.err
    assert set(outcome.json) == {"adapter", "outputs"}
    return [entry["output"] for entry in outcome.json["outputs"]]


def flags(prompts: list[str]) -> list[str]:
    return [word for prompt in prompts for word in ("--prompt", prompt)]


def test_prompts_and_batches(reftune: Command, adapter: Path) -> None:
    common = (adapter, "--json", "--max-new-tokens", 5)
    together = outputs(reftune("generate", *common, *flags(PROMPTS)))
    assert len(together) == len(PROMPTS) and len(set(together)) > 1
    for size in (1, 3):
        assert outputs(reftune("generate", *common, *flags(PROMPTS), "--batch-size", size)) == together
    assert outputs(reftune("generate", *common, "-p", PROMPTS[2])) == [together[2]]


def test_in_the_terminal(reftune: Command, adapter: Path) -> None:
    one = reftune("generate", adapter, "--prompt", PROMPTS[0], "--max-new-tokens", 5)
    assert len(one.out.splitlines()) == 1 and one.out.strip()
    two = reftune("generate", adapter, *flags(PROMPTS[:2]), "--max-new-tokens", 5)
    lines = two.out.splitlines()
    assert lines[0] == PROMPTS[0] and lines[2] == PROMPTS[1]
    assert lines[1] == one.out.strip()


def test_all_kinds_of_files_ask_the_same(reftune: Command, adapter: Path, tmp_path: Path) -> None:
    asked = PROMPTS[:3]
    (tmp_path / "a.txt").write_text("\ufeff" + "\n\n".join(asked) + "\r\n", encoding="utf-8")
    records = [{"messages": [{"role": "user", "content": text}]} for text in asked]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "a.json").write_text(json.dumps(CHATS[:3]))  # with answers, which are not used
    texts = "".join(json.dumps({"text": text, "label": None}) + "\n" for text in asked)
    (tmp_path / "texts.jsonl").write_text(texts)
    expected = outputs(reftune("generate", adapter, "--json", "--max-new-tokens", 4, *flags(asked)))
    for name in ("a.txt", "a.jsonl", "a.json", "texts.jsonl"):
        found = outputs(reftune("generate", adapter, "--json", "--max-new-tokens", 4, "--file", tmp_path / name))
        assert found == expected, name


def test_records_of_a_table_are_bare_prompts(reftune: Command, adapter: Path, tmp_path: Path) -> None:
    with (tmp_path / "a.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["prompt"], *([text] for text in PROMPTS[:3])])
    common = (adapter, "--json", "--max-new-tokens", 4)
    table = outputs(reftune("generate", *common, "--file", tmp_path / "a.csv"))
    raw = outputs(reftune("generate", *common, "--raw", *flags(PROMPTS[:3])))
    chat = outputs(reftune("generate", *common, *flags(PROMPTS[:3])))
    assert table == raw != chat


def test_flags_and_file_together(reftune: Command, adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "a").write_text(PROMPTS[1])
    outcome = reftune("generate", adapter, "--json", "-p", PROMPTS[0], "-f", tmp_path / "a", "--max-new-tokens", 2)
    assert [entry["prompt"] for entry in outcome.json["outputs"]] == PROMPTS[:2]


def test_records_are_shown_by_their_question(reftune: Command, adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([*CHATS[:1], *CHATS[1:2]]))
    outcome = reftune("generate", adapter, "--file", tmp_path / "a.json", "--max-new-tokens", 2)
    assert outcome.out.splitlines()[0] == CHATS[0]["messages"][0]["content"]


def test_without_a_style_file_a_chat_template_decides(reftune: Command, adapter: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(adapter, tmp_path / "copy"))
    (copy / "reftune.json").unlink()
    common = ("--json", "--max-new-tokens", 4, *flags(PROMPTS[:2]))
    outcome = reftune("generate", copy, *common)
    assert outputs(outcome) == outputs(reftune("generate", adapter, *common))
    told = " ".join(outcome.err.split())
    assert "has no reftune.json" in told and "by the chat template" in told
    assert "--prompt-style instruction or prompt" in told
    assert outcome.err.count("reftune.json") == 1


def test_the_style_can_be_chosen(reftune: Command, adapter: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(adapter, tmp_path / "copy"))
    common = ("--json", "--max-new-tokens", 4, *flags(PROMPTS[:2]))
    for style in STYLES:
        PromptStyle(style).write(copy)
        as_trained = outputs(reftune("generate", copy, *common))
        (copy / "reftune.json").unlink()
        outcome = reftune("generate", copy, *common, "--prompt-style", style)
        assert outputs(outcome) == as_trained and "reftune.json" not in outcome.err
    outcome = reftune("generate", copy, *common, "--prompt-style", "prompt", "--raw")
    assert outputs(outcome) == outputs(reftune("generate", copy, *common, "--raw"))
    assert reftune("generate", copy, *common, "--prompt-style", "messages", "--raw").code == 2
    # of records the file itself says how they are put
    (tmp_path / "a.jsonl").write_text(json.dumps(CHATS[0]))
    assert "reftune.json" not in reftune("generate", copy, "-f", tmp_path / "a.jsonl", "--max-new-tokens", 1).err


@pytest.mark.parametrize("content", ['{"system": 5}', '["prompt"]', '{"style": "prompt", "system": "x"}', "[" * 50_000])
def test_every_command_refuses_a_style_that_cannot_be(
    reftune: Command, adapter: Path, base: Path, tmp_path: Path, content: str
) -> None:
    copy = Path(shutil.copytree(adapter, tmp_path / "copy"))
    (copy / "reftune.json").write_text(content)
    for command in (
        ("generate", copy, "-p", "w1"),
        ("generate", copy, "-p", "w1", "--raw"),
        ("chat", copy),
        ("show", copy),
        ("eval", copy, "--tasks", "boolq", "--data-dir", task_data(tmp_path), "--output", tmp_path / "eval"),
    ):
        assert_user_error(reftune(*command, **({"stdin": "w1"} if command[0] == "chat" else {})), "reftune.json")


def task_data(folder: Path) -> Path:
    """One row of a task."""
    source = TASKS["boolq"].sources["test"]
    (folder / source.file).parent.mkdir(parents=True, exist_ok=True)
    row = json.dumps({"instruction": "w1", "input": "", "output": "w2", "answer": "true"})
    (folder / source.file).write_bytes(gzip.compress(row.encode()))
    return folder


def test_tools_of_a_record_reach_the_template(reftune: Command, adapter: Path, base: Path, tmp_path: Path) -> None:
    knows = Path(shutil.copytree(base, tmp_path / "base"))
    template = knows / "chat_template.jinja"
    template.write_text("{% for t in tools or [] %}{{ t.name }} {% endfor %}" + template.read_text())
    record = {"messages": [{"role": "user", "content": "w1 w2"}], "tools": [{"name": "w5 w6 w7"}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(record))
    (tmp_path / "b.jsonl").write_text(json.dumps({"messages": record["messages"]}))
    ask = ("generate", adapter, "--base", knows, "--json", "--max-new-tokens", 6, "--file")
    model, tokenizer = load_adapter(adapter, base=str(knows))
    expected = generate_texts(model, tokenizer, ["w5 w6 w7 <user> w1 w2 <assistant>"], max_new_tokens=6)
    assert outputs(reftune(*ask, tmp_path / "a.jsonl")) == expected != outputs(reftune(*ask, tmp_path / "b.jsonl"))
    lost = reftune("generate", adapter, "--file", tmp_path / "a.jsonl")
    assert lost.code == 1 and "prompt 1 of 1: the chat template leaves out 'tools'" in lost.err, lost


def test_odd_values_in_other_columns_lose_no_answer(reftune: Command, adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "w1", "note": "\\ud83d", "score": NaN}')
    outcome = reftune("generate", adapter, "--file", tmp_path / "a.jsonl", "--json", "--max-new-tokens", 2)
    assert len(outputs(outcome)) == 1


def test_sampling(reftune: Command, adapter: Path) -> None:
    common = (adapter, "--json", "--max-new-tokens", 12, "-p", PROMPTS[0])
    assert len({outputs(reftune("generate", *common, "--temperature", 5))[0] for _ in range(3)}) > 1


def test_errors(reftune: Command, adapter: Path, base: Path, tmp_path: Path) -> None:
    ask = ("--prompt", "w1")
    assert_user_error(reftune("generate", tmp_path / "none", *ask), "none", "no adapter")
    assert_user_error(reftune("generate", base, *ask), "no adapter", "adapter_config.json")
    assert_user_error(reftune("generate", "nobody/nothing", *ask), "nobody/nothing")
    assert_user_error(reftune("generate", adapter, *ask, "--base", "no/model"), "no/model", "--base")
    assert_user_error(reftune("generate", adapter, "--file", tmp_path / "q.txt"), "q.txt", "No such file")
    assert_user_error(reftune("generate", adapter, "--file", tmp_path / "q.jsonl"), "q.jsonl", "no such file")
    assert_user_error(reftune("generate", adapter, "--file", tmp_path), str(tmp_path))
    (tmp_path / "empty.txt").write_text("\n \n")
    assert_user_error(reftune("generate", adapter, "--file", tmp_path / "empty.txt"), "empty.txt", "no line")
    (tmp_path / "latin.txt").write_bytes("gr\xfc\xdfe".encode("latin-1"))
    assert_user_error(reftune("generate", adapter, "--file", tmp_path / "latin.txt"), "latin.txt", "UTF-8")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "w1"}\n{"text": "w2"}\n')
    assert_user_error(reftune("generate", adapter, "--file", tmp_path / "bad.jsonl"), "bad.jsonl", "line 2")


def test_what_a_model_writes_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    text = "[bold]x[/bold] :smile: " + "long " * 40 + "end"
    say(Console(emoji=False, width=40), text)
    assert capsys.readouterr().out == text + "\n"


@pytest.mark.slow
def test_script(script: Command, adapter: Path) -> None:
    # an encoding without emoji must not break the JSON
    outcome = script("generate", adapter, "--json", "--max-new-tokens", 3, "-p", "w1 🍕", PYTHONIOENCODING="ascii")
    assert len(outputs(outcome)) == 1
    assert outcome.json["outputs"][0]["prompt"] == "w1 🍕"
