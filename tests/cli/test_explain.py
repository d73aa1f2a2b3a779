"""`reftune explain` as a user runs it: what is printed, the page, the smaller adapter, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from reftune.values import ranges
from tests.cli.conftest import Command, assert_user_error

KEYS = {"adapter", "sites", "text", "texts", "size", "edits", "basis", "next", "along", "matters", "patching", "notes"}
AGAINST = {"adapter", "against", "methods", "texts", "layers", "next", "answers", "notes", "html"}


@pytest.mark.slow
def test_everything_is_told(reftune: Command, adapter: Path, tmp_path: Path) -> None:
    page, smaller = tmp_path / "page.html", tmp_path / "smaller"
    outcome = reftune(
        "explain",
        adapter,
        "--prompt",
        "w1 w2 w3",
        "--html",
        page,
        "--prune-to",
        smaller,
        "--max-new-tokens",
        3,
        "--json",
    )
    assert outcome.code == 0, outcome.err
    found = outcome.json
    assert set(found) == KEYS | {"html", "pruned"}
    assert [site["site"] for site in found["sites"]] == ["resid_post.0", "resid_post.1"]
    assert found["size"]["positions"] == ["f1", "l2", "l1"] and found["notes"] == []
    text = page.read_text(encoding="utf-8")
    assert "<script" not in text and text.count("<svg") == 6 and "data-note" in text
    # the smaller adapter is one: it answers, and is explained
    kept = found["matters"]["smallest"]["layers"]
    again = reftune("explain", smaller, "--prompt", "w1 w2 w3", "--parts", "size", "--max-new-tokens", 3, "--json")
    assert [site["layer"] for site in again.json["sites"]] == kept
    card = (smaller / "README.md").read_text(encoding="utf-8")
    assert card.count("library_name: peft") == 1 and f"layers {ranges(kept)} of the adapter {adapter.name}" in card
    assert "## Training of the whole adapter" in card and "training loss" in card
    assert set(again.json) == {"adapter", "sites", "text", "texts", "size", "edits", "notes", "html", "pruned"}


def test_a_file_in_the_terminal(reftune: Command, adapter: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("w1 w2 w3\nw4 w5 w6 w7\n")
    outcome = reftune("explain", adapter, "--file", file, "--max-new-tokens", 2)
    assert outcome.code == 0, outcome.err
    for part in ("mean ± spread of 2 texts", "the largest edits", "next token", "along the layers", "alone keep"):
        assert part in outcome.out
    one = reftune("explain", adapter, "-p", "w1 w2 w3", "--answer", "w9 w9", "--parts", "effect", "--json")
    assert one.json["text"]["answer"].startswith("w9 w9")


@pytest.mark.slow
def test_against_a_lora(reftune: Command, adapter: Path, base: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    lora, page, file = tmp_path / "lora", tmp_path / "page.html", tmp_path / "prompts.txt"
    config = LoraConfig(target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(str(lora))
    file.write_text("w1 w2 w3\nw4 w5 w6 w7\n")
    given = ("--file", file, "--max-new-tokens", 2)
    found = reftune("explain", adapter, "--against", lora, *given, "--html", page, "--json").json
    assert set(found) == AGAINST and found["methods"] == ["REFT", "LORA"]
    assert [row["layer"] for row in found["layers"] if row["angles"]] == [0, 1]
    assert found["answers"]["prompts"] == 2 and len(found["notes"]) == 1 and "q_proj" in found["notes"][0]
    text = page.read_text(encoding="utf-8")
    assert "<script" not in text and text.count("<svg") == 4
    # the other way round, in the terminal
    told = reftune("explain", lora, "--against", adapter, *given)
    assert told.code == 0, told.err
    for part in ("edits behind each layer", "the next token", "answers:", "q_proj"):
        assert part in told.out
    assert reftune("explain", adapter, "--against", lora, "-p", "w1", "--prune-to", tmp_path / "x").code == 2
    assert_user_error(reftune("explain", adapter, "--against", adapter, "-p", "w1"), "against itself")
    assert_user_error(reftune("explain", adapter, "--against", tmp_path, "-p", "w1"), "no adapter", str(tmp_path))


def test_errors(reftune: Command, adapter: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("w1\nw2\n")
    for wrong in (
        (),
        ("-p", "w1", "-f", file),
        ("-f", file, "--answer", "w2"),
        ("-p", "w1", "--parts", "size,colour"),
        ("-p", "w1", "--parts", "size", "--prune-to", tmp_path / "smaller"),
        ("-p", "w1", "--keep", "90"),
    ):
        assert reftune("explain", adapter, *wrong).code == 2
    assert_user_error(reftune("explain", adapter, "-p", "w1", "--prune-to", tmp_path), "not empty", str(tmp_path))
    assert_user_error(reftune("explain", tmp_path, "-p", "w1"), "no adapter", str(tmp_path))


@pytest.mark.slow
def test_the_page_in_a_browser(reftune: Command, adapter: Path, tmp_path: Path, browser: Any) -> None:
    page = tmp_path / "page.html"
    reftune("explain", adapter, "--prompt", "w1 w2 w3", "--html", page, "--max-new-tokens", 3)
    papers = set()
    for scheme, width in (("light", 1200), ("dark", 1200), ("light", 390)):
        context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 800})
        shown, complaints = context.new_page(), []
        shown.on("console", lambda message, to=complaints: to.append(message.text))
        shown.goto(page.as_uri())
        papers.add(shown.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert shown.evaluate("document.documentElement.scrollWidth") <= width
        token = shown.locator(".tokens span[data-note]").first
        note: Callable[[], str] = lambda at=token: at.evaluate("e => getComputedStyle(e, '::after').content")  # noqa: E731
        assert note() == "none"
        token.hover()
        assert "of the state" in note()
        assert complaints == []
        context.close()
    assert len(papers) == 2
