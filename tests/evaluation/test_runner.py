"""Answers to rows: right in any batch, resumed where they stopped, scored as by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import get_peft_model

from reftune import ReftConfig
from reftune.evaluation import runner
from reftune.evaluation.data import task_rows
from reftune.evaluation.runner import evaluate_rows, score_examples
from reftune.evaluation.tasks import TASKS
from tests.evaluation.world import sentences_folder
from tests.training.text_models import text_model, word_tokenizer

# the tiny model says words of its own vocabulary: what it wrote is its answer
ECHO = replace(
    TASKS["sst2"], prompt=lambda row: {"prompt": row["sentence"]}, extract=lambda output: output.strip() or None
)


@pytest.fixture
def rows(tmp_path: Path) -> list[Any]:
    return task_rows(TASKS["sst2"], "test", data_dir=sentences_folder(tmp_path / "data"))


def adapted() -> Any:
    torch.manual_seed(0)
    return get_peft_model(text_model(), ReftConfig(r=2, positions="f2+l2", init="random", task_type="CAUSAL_LM"))


def test_the_batch_size_changes_no_answer(rows: list[Any]) -> None:
    found = [evaluate_rows(adapted(), word_tokenizer(), ECHO, rows, batch_size=size).examples for size in (1, 3, 16)]
    assert found[0] == found[1] == found[2]
    assert len({example["output"] for example in found[0]}) > 4
    assert [example["id"] for example in found[0]] == [row["id"] for row in rows]


def test_goes_on_where_it_stopped(rows: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer, file = adapted(), word_tokenizer(), tmp_path / "sst2.jsonl"
    whole = evaluate_rows(model, tokenizer, ECHO, rows, batch_size=4)
    asked: list[int] = []
    generate = runner.generate_batches

    def stops(*args: Any, **kwargs: Any) -> Any:
        asked.append(len(args[2]))
        for number, batch in enumerate(generate(*args, **kwargs)):
            if len(asked) == 1 and number == 2:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(runner, "generate_batches", stops)
    with pytest.raises(KeyboardInterrupt):
        evaluate_rows(model, tokenizer, ECHO, rows, batch_size=4, file=file)
    # the machine went down in the middle of a line
    with file.open("a") as text:
        text.write('{"id": 3, "prom')
    found = evaluate_rows(model, tokenizer, ECHO, rows, batch_size=4, file=file)
    assert asked == [16, 8]
    assert found.examples == whole.examples
    assert [json.loads(line) for line in file.read_text().splitlines()] == whole.examples


def test_lines_that_were_broken_off_are_done_again(rows: list[Any], tmp_path: Path) -> None:
    model, tokenizer, file = adapted(), word_tokenizer(), tmp_path / "sst2.jsonl"
    whole = evaluate_rows(model, tokenizer, ECHO, rows, file=file)
    lines = file.read_bytes().splitlines(keepends=True)
    for end in ('{"id": 3, "output": "ö'.encode()[:-1], b"42\n", b'{"foo": 1}\n', b'{"id": 3}\n'):
        file.write_bytes(b"".join(lines[:3]) + end)
        assert evaluate_rows(model, tokenizer, ECHO, rows, file=file).examples == whole.examples
        assert file.read_bytes().splitlines(keepends=True) == lines


def test_answers_to_other_prompts_are_not_taken(rows: list[Any], tmp_path: Path) -> None:
    file = tmp_path / "sst2.jsonl"
    evaluate_rows(adapted(), word_tokenizer(), ECHO, rows, file=file)
    other = replace(ECHO, prompt=lambda row: {"prompt": f"w9 {row['sentence']}"})
    found = evaluate_rows(adapted(), word_tokenizer(), other, rows, file=file)
    assert all(example["prompt"].startswith("w9 ") for example in found.examples)
    assert found.examples == evaluate_rows(adapted(), word_tokenizer(), other, rows).examples


def test_score_is_that_of_the_answers() -> None:
    def example(answer: str | None) -> dict[str, Any]:
        return {"id": 0, "answer": answer, "reference": "positive"}

    given = ["positive"] * 6 + ["negative"] * 2 + [None] * 2
    found = score_examples(TASKS["sst2"], [example(answer) for answer in given])
    assert found.score == pytest.approx(0.6) and found.unreadable == 2 and found.n == 10
    assert found.low is not None and found.high is not None
    assert 0.2 <= found.low < 0.6 < found.high <= 1.0
    assert "examples" not in found.summary()
    assert np.isfinite(found.summary()["score"])
