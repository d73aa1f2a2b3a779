"""`reftune show`: sites, parameters and the picture of the edited tokens."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from rich.console import Console

from reftune import ReftConfig, parse_positions
from reftune.cli import show as command
from reftune.models import load_base, save_adapter
from tests.cli.conftest import Command, assert_user_error

PROMPT = "w1 w2 w3 w4 w5"
# in the chat template: <user> w1 … w5 <assistant>
PIECES = ["<user>", "w1", "w2", "w3", "w4", "w5", "<assistant>"]


def edited(found: dict[str, Any], layer: int) -> list[int]:
    return [token["index"] for token in found["prompt_tokens"] if layer in token["layers"]]


def test_the_style_can_be_chosen(reftune: Command, adapter: Path, base: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(adapter, tmp_path / "copy"))
    (copy / "reftune.json").unlink()
    outcome = reftune("show", copy, "--prompt", PROMPT, "--json")
    assert [token["token"] for token in outcome.json["prompt_tokens"]] == PIECES
    assert "has no reftune.json" in outcome.err
    for target in (copy, base):
        outcome = reftune("show", target, "--prompt", PROMPT, "--json", "--prompt-style", "prompt")
        assert [token["token"] for token in outcome.json["prompt_tokens"]] == PIECES[1:-1]
        assert outcome.err == ""


def test_adapter(reftune: Command, adapter: Path) -> None:
    found = reftune("show", adapter, "--prompt", PROMPT, "--json").json
    assert [site["layer"] for site in found["sites"]] == [0, 1]
    assert found["sites"][0] == {
        "layer": 0,
        "module": "model.layers.0",
        "component": "block_output",
        "intervention": "loreft",
        "positions": "f1+l2",
        "rank": 2,
        "parameters": 130,
    }
    assert found["trainable_parameters"] == 260
    assert [token["token"] for token in found["prompt_tokens"]] == PIECES
    assert edited(found, 0) == edited(found, 1) == [0, 5, 6]


def test_adapter_without_a_prompt(reftune: Command, adapter: Path, base: Path, tmp_path: Path) -> None:
    """Its files tell; the base model need not be there."""
    copy = Path(shutil.copytree(adapter, tmp_path / "copy"))
    config = copy / "adapter_config.json"
    config.write_text(config.read_text().replace(str(base), "someone/large [bold]"))
    found = reftune("show", copy, "--json").json
    assert found == reftune("show", adapter, "--prompt", PROMPT, "--json").json | {
        "target": str(copy),
        "trainable_percent": None,
        "prompt_tokens": None,
    }
    text = reftune("show", copy).out
    row = next(line for line in text.splitlines() if "loreft" in line)
    assert [cell.strip() for cell in row.strip("│ ").split("│")] == [
        "0–1",
        "block_output",
        "loreft",
        "f1+l2",
        "2",
        "130",
    ]
    assert "260 parameters" in text and "someone/large [bold]" in text and "⟦" not in text
    assert_user_error(reftune("show", copy, "--prompt", PROMPT), "someone/large")


@pytest.mark.parametrize(
    ("positions", "expected"),
    [
        ("f2", [0, 1]),
        ("l3", [4, 5, 6]),
        ("f2+l1", [0, 1, 6]),
        ("f9+l9", list(range(7))),
        ("f1+l9", [0, 3, 4, 5, 6]),
        ("prompt", list(range(7))),
        ("ALL", list(range(7))),
        ("response", []),
        ("p[1:-1]+g2", [1, 2, 3, 4, 5]),
        ("all-id(4,9)-l1", [1, 3, 4, 5]),
        ('text("w1","w3")', [1, 3]),
    ],
)
def test_model_with_a_configuration(reftune: Command, base: Path, positions: str, expected: list[int]) -> None:
    flags = ("--positions", positions, "--layers", "1", "--rank", 3)
    found = reftune("show", base, "--prompt", PROMPT, *flags, "--json").json
    assert [site["layer"] for site in found["sites"]] == [1]
    assert found["sites"][0]["rank"] == 3
    assert edited(found, 1) == expected
    assert edited(found, 0) == []


def test_marked_tokens(reftune: Command, base: Path) -> None:
    marked = PROMPT.replace("w2 w3", "<<reft>>w2 w3<</reft>>")
    assert marked != PROMPT
    found = reftune("show", base, "--prompt", marked, "--positions", "span+l1", "--layers", "1", "--json").json
    assert edited(found, 1) == [2, 3, 6]


def test_spans_far_longer_than_the_prompt_take_no_time() -> None:
    spec = parse_positions("f500000+l500000")
    began = time.process_time()
    assert [command._edited(spec, spec, tuple(range(6))) for _ in range(40)] == [tuple(range(6))] * 40
    assert time.process_time() - began < 3  # was 5 s for one of the 40 layers


def with_groups(base: Path, folder: Path, groups: list[dict[str, Any]]) -> Path:
    model: Any = get_peft_model(load_base(str(base))[0], ReftConfig(r=2, groups=groups, task_type="CAUSAL_LM"))
    return save_adapter(model, folder)


def test_several_groups(reftune: Command, base: Path, tmp_path: Path) -> None:
    groups = [{"layers": [0], "positions": "f2"}, {"layers": [1], "positions": "l1", "intervention": "direft"}]
    folder = with_groups(base, tmp_path / "groups", groups)
    found = reftune("show", folder, "--prompt", PROMPT, "--json").json
    assert [(site["layer"], site["intervention"]) for site in found["sites"]] == [(0, "loreft"), (1, "direft")]
    assert (edited(found, 0), edited(found, 1)) == ([0, 1], [6])
    text = reftune("show", folder, "--prompt", PROMPT).out
    assert "⟦<user>⟧⟦w1⟧w2" in text
    assert "w5⟦<assistant>⟧" in text


def test_groups_of_one_site_give_way_to_each_other(reftune: Command, base: Path, tmp_path: Path) -> None:
    # 7 tokens, 5 + 5 slots: together they edit the first 3 and the last 4, each token once
    groups = [{"layers": [0], "positions": "f5"}, {"layers": [0], "positions": "l5"}]
    folder = with_groups(base, tmp_path / "groups", groups)
    lines = reftune("show", folder, "--prompt", PROMPT).out.splitlines()
    pictures = [line for line in lines if "⟦" in line]
    assert [line.count("⟦") for line in pictures] == [3, 4]
    found = reftune("show", folder, "--prompt", PROMPT, "--json").json
    assert all(token["layers"] == [0] for token in found["prompt_tokens"])


@pytest.mark.parametrize(
    ("positions", "line"),
    [
        ("all", "… and every generated token"),
        ("response", "no token of the prompt, every generated token"),
        ("l1+g3", "… and, as the positions say, of the first 3 generated tokens"),
        ("id(7)", "… and, as the positions say, of the generated tokens"),
    ],
)
def test_generated_tokens_are_told(reftune: Command, base: Path, positions: str, line: str) -> None:
    assert line in reftune("show", base, "--positions", positions).out


def test_the_table(reftune: Command, base: Path) -> None:
    out = reftune("show", base, "--prompt", PROMPT, "--positions", "l1", "--rank", 4).out
    row = next(line for line in out.splitlines() if "loreft" in line)
    assert [cell.strip() for cell in row.strip("│ ").split("│")] == ["0–1", "block_output", "loreft", "l1", "4", "260"]
    assert "520 parameters" in out


def test_colours_in_a_terminal() -> None:
    console = Console(record=True, force_terminal=True, color_system="standard", width=80, no_color=False)
    text = command._picture(console, {1}, ["a", "\n", "b"], command.COLOURS[0])
    assert text.plain == "a⏎b"
    console.print(text)
    coloured = console.export_text(styles=True)
    marked = next(part for part in coloured.split("\x1b[0m") if "⏎" in part)
    assert "103m" in marked and "103m" not in coloured.replace(marked, "")


def test_without_colours_there_are_brackets() -> None:
    console = Console(force_terminal=True, no_color=True, width=80)
    assert command._picture(console, {0, 2}, ["a", "b\n", "c"], command.COLOURS[0]).plain == "⟦a⟧b⏎\n⟦c⟧"


def test_errors(reftune: Command, base: Path, adapter: Path, tmp_path: Path) -> None:
    assert_user_error(reftune("show", tmp_path / "none"), "none")
    assert_user_error(reftune("show", "nobody/nothing"), "nobody/nothing")
    assert_user_error(reftune("show", tmp_path), str(tmp_path))
    assert_user_error(reftune("show", base, "--positions", "x3"), "'x3'", "f7+l7")
    assert_user_error(reftune("show", base, "--layers", "9"), "9", "0..1")
    assert_user_error(reftune("show", base, "--rank", "33"), "33", "32")
    assert_user_error(reftune("show", base, "--intervention", "magic"), "'magic'", "loreft")
    assert_user_error(reftune("show", adapter, "--base", "no/model"), "no/model")
    model: Any = get_peft_model(load_base(str(base))[0], LoraConfig(r=2, task_type="CAUSAL_LM"))
    assert_user_error(reftune("show", save_adapter(model, tmp_path / "lora")), "LORA")


@pytest.mark.slow
def test_script(script: Command, base: Path) -> None:
    outcome = script("show", base, "--positions", "x3")
    assert outcome.code == 1 and outcome.out == ""
    assert "'x3'" in outcome.err and "Traceback" not in outcome.err
