"""`reftune train --check`: what is shown of rows is what is trained on, and nothing is written."""

from __future__ import annotations

import json
from pathlib import Path

from reftune import build_dataset
from reftune.models import load_base
from tests.cli.conftest import Command, assert_user_error
from tests.training.text_models import CHATS


def file_of(folder: Path) -> Path:
    file = folder / "train.jsonl"
    file.write_text("\n".join(json.dumps(record) for record in CHATS), encoding="utf-8")
    return file


def test_rows_edits_lengths_and_costs(reftune: Command, base: Path, tmp_path: Path) -> None:
    data, output = file_of(tmp_path), tmp_path / "out"
    flags = ("--model", base, "--data", data, "--output", output, "--positions", "f1+l2", "--rank", 2)
    more = ("--batch-size", 3, "--epochs", 2, "--check")
    found = reftune("train", *flags, *more, "--json").json
    _, tokenizer = load_base(str(base))
    dataset = build_dataset(str(data), tokenizer)
    assert [row["ids"] for row in found["shown"]] == [list(dataset[i]["input_ids"]) for i in range(3)]
    for row in found["shown"]:
        n = row["prompt_length"]
        assert [i for i, groups in enumerate(row["edits"]) if groups] == [0, n - 2, n - 1]
    lengths = sorted(len(row["input_ids"]) for row in dataset)
    assert (found["lengths"]["shortest"], found["lengths"]["longest"]) == (lengths[0], lengths[-1])
    assert (found["rows"], found["lengths"]["cut"]) == (len(CHATS), 0)
    assert found["steps"] == 2 * -(-len(CHATS) // 3)
    assert found["seconds"] > 0 and found["trainable_parameters"] > 0
    assert not output.exists()
    # longer ones are told, and shown as they are cut
    cut = reftune("train", *flags, *more, "--max-length", lengths[0] - 1, "--json").json
    assert cut["lengths"]["cut"] == len(CHATS)
    assert all(len(row["ids"]) == lengths[0] - 1 and row["cut"] > 0 for row in cut["shown"])
    text = reftune("train", *flags, *more)
    assert "⟦" in text.out and "▷" in text.out and "Nothing was trained or written" in text.out


def test_what_keeps_a_run_from_training_keeps_it_from_being_checked(
    reftune: Command, base: Path, tmp_path: Path
) -> None:
    flags = ("--model", base, "--output", tmp_path / "out", "--check")
    assert_user_error(reftune("train", *flags, "--data", tmp_path / "none.jsonl"), "none.jsonl")
    outcome = reftune("train", *flags, "--data", file_of(tmp_path), "--layers", "99")
    assert_user_error(outcome, "layer 99 does not exist")
