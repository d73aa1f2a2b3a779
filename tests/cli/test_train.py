"""`reftune train`: from YAML and from flags."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from reftune import training
from reftune.cli import progress
from tests.cli.conftest import Command, assert_user_error
from tests.evaluation.own.files import KINDS, jsonl, messages
from tests.training.text_models import PAIRS, write_jsonl

KEYS = {
    "final_loss",
    "seconds",
    "steps",
    "trainable_parameters",
    "trainable_percent",
    "adapter_path",
    "adapter_bytes",
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "rows.jsonl")


def write_yaml(folder: Path, base: Path, rows: Path, **more: Any) -> Path:
    training = {"num_train_epochs": 2, "learning_rate": 9e-4}
    values = {"model": str(base), "data": str(rows), "output": str(folder / "out"), "training": training, **more}
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_from_yaml(reftune: Command, base: Path, data: Path, tmp_path: Path) -> None:
    config = write_yaml(tmp_path, base, data, reft={"r": 2, "positions": "l1"}, eval_data=str(data))
    # as people write it, which YAML takes for a text
    config.write_text(config.read_text().replace("0.0009", "9e-4"))
    outcome = reftune("train", config, "--json")
    assert outcome.code == 0, outcome.err
    found = outcome.json
    # the same file to train on and to score: there is no score to tell
    assert set(found) == KEYS | {"eval_loss"}
    assert "only the loss" in outcome.err and "both what to train on and what to score" in outcome.err
    assert found["adapter_path"] == str(tmp_path / "out")
    assert found["adapter_bytes"] == (tmp_path / "out" / "adapter_model.safetensors").stat().st_size
    assert found["steps"] == 2
    saved = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (saved["r"], saved["positions"]) == (2, "l1")


def test_flags_alone_and_flags_over_yaml(reftune: Command, base: Path, data: Path, tmp_path: Path) -> None:
    one = tmp_path / "one"
    where = ("--model", base, "--data", data, "--output", one)
    how = ("--rank", 3, "--layers", "-1", "--positions", "f1", "--intervention", "direft", "--epochs", 1)
    outcome = reftune("train", *where, *how, "--lr", "1e-2", "--batch-size", 2, "--seed", 1, "--max-length", 64)
    assert outcome.code == 0, outcome.err
    assert "reftune chat" in outcome.out
    saved = json.loads((one / "adapter_config.json").read_text())
    assert (saved["r"], saved["positions"], saved["intervention"]) == (3, "f1", "direft")
    assert (one / "checkpoints" / "checkpoint-4").is_dir()

    config = write_yaml(tmp_path, base, data, reft={"r": 2, "positions": "l1"})
    outcome = reftune("train", config, "--rank", 4, "--output", tmp_path / "two", "--json")
    assert outcome.json["adapter_path"] == str(tmp_path / "two")
    saved = json.loads((tmp_path / "two" / "adapter_config.json").read_text())
    assert (saved["r"], saved["positions"]) == (4, "l1")


def test_eval_data_is_scored_beside_the_base_model(reftune: Command, base: Path, tmp_path: Path) -> None:
    train, test = jsonl(tmp_path / "train.jsonl", messages(24)), jsonl(tmp_path / "test.jsonl", messages(12, first=60))
    where = ("train", "--model", base, "--data", train, "--eval-data", test, "--epochs", 2)
    outcome = reftune(*where, "--output", tmp_path / "a", "--best", "--json")
    assert outcome.code == 0, outcome.err
    found = outcome.json
    assert "3 different answers in 36 rows" in outcome.err
    for name in ("adapter", "base"):
        assert found["scores"][name]["n"] == 12
        lines = [json.loads(line) for line in (tmp_path / f"a/eval/{name}.jsonl").read_text().splitlines()]
        assert len(lines) == 12 and [line["reference"] for line in lines][:3] == list(KINDS)
    assert found["best_epoch"] in (1, 2) and found["paired"]["rows"] == 12
    assert [set(sample) for sample in found["samples"]] == [{"prompt", "wanted", "base", "adapter"}] * 5
    assert json.loads((tmp_path / "a/eval/scores.json").read_text())["scores"] == found["scores"]
    # the same as that of `eval`, which computes in float32 too
    scored = reftune("eval", tmp_path / "a", "--tasks", test, "--output", tmp_path / "e", "--json").json["scores"][
        "test"
    ]
    assert scored["score"] == found["scores"]["adapter"]["score"]
    shown = reftune(*where, "--output", tmp_path / "b", "--eval-rows", 4)
    assert shown.code == 0, shown.err
    for words in ("base model", "most frequent label", "McNemar", "wanted", "4 of the rows", "eval loss"):
        assert words in shown.out, words
    assert "kept for its loss" not in shown.out
    none = reftune(*where, "--output", tmp_path / "c", "--eval-rows", 0, "--json")
    assert set(none.json) == KEYS | {"eval_loss"} and not (tmp_path / "c/eval").exists()


def test_a_part_that_is_held_back_is_what_eval_scores(reftune: Command, base: Path, tmp_path: Path) -> None:
    data = jsonl(tmp_path / "all.jsonl", messages(24))
    where = ("train", "--model", base, "--data", data, "--epochs", 1, "--output")
    found = reftune(*where, tmp_path / "a", "--split", 0.4, "--json")
    assert found.code == 0, found.err
    scored = reftune("eval", tmp_path / "a", "--tasks", data, "--split", 0.4, "--output", tmp_path / "e", "--json").json
    adapter = found.json["scores"]["adapter"]
    assert (adapter["n"], adapter["score"]) == (scored["scores"]["all"]["n"], scored["scores"]["all"]["score"])
    assert 0 < adapter["n"] < 24 and found.json["eval_loss"] > 0
    # the same by a key of the file
    (tmp_path / "run.yaml").write_text(
        f"{{model: {base}, data: {data}, split: 0.4, training: {{num_train_epochs: 1}}}}"
    )
    again = reftune("train", tmp_path / "run.yaml", "--output", tmp_path / "b", "--json").json
    assert {**again["scores"]["adapter"], "seconds": 0} == {**adapter, "seconds": 0}
    for more, words in (
        (("--split", 0.2, "--eval-data", data), "give eval_data or split, not both"),
        (("--split", 1.5), "split=1.5 is not valid"),
        (("--split", 0.2, "--data", "no-file"), "split is for a file of records, and data='no-file' is none"),
    ):
        refused = reftune(*where, tmp_path / "c", *more)
        assert refused.code == 1 and words in refused.err, refused.err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--best",), "best=True keeps the epoch with the lowest loss on eval_data; name eval_data too"),
        (("--eval-data", "nowhere.jsonl"), "nowhere.jsonl: no such file"),
    ],
)
def test_eval_data_that_is_not_there(
    reftune: Command, base: Path, data: Path, tmp_path: Path, more: tuple[str, ...], words: str
) -> None:
    assert_user_error(reftune("train", "--model", base, "--data", data, "--output", tmp_path / "a", *more), words)


def test_eval_data_without_a_score_still_has_a_loss(reftune: Command, base: Path, data: Path, tmp_path: Path) -> None:
    same = jsonl(tmp_path / "same.jsonl", [{"prompt": f"w{i}", "completion": "w1"} for i in range(3)])
    train = jsonl(tmp_path / "train.jsonl", [{"prompt": f"w{i}", "completion": "w1"} for i in range(9, 14)])
    given = ("train", "--model", base, "--data", train, "--eval-data", same, "--epochs", 1, "--json")
    outcome = reftune(*given, "--output", tmp_path / "a")
    assert set(outcome.json) == KEYS | {"eval_loss"}
    assert "only the loss" in outcome.err and "all 8 answers are 'w1'" in outcome.err


def test_existing_output(reftune: Command, base: Path, data: Path, tmp_path: Path) -> None:
    config = write_yaml(tmp_path, base, data)
    assert reftune("train", config).code == 0
    assert_user_error(reftune("train", config), "--resume", "--overwrite")
    resumed = reftune("train", config, "--resume", "--epochs", 4, "--json")
    assert resumed.json["steps"] == 4
    assert reftune("train", config, "--overwrite", "--json").json["steps"] == 2


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        ({"epochs": 3}, ["'epochs'", "training"]),
        ({"reft": {"rank": 3}}, ["'rank'", "positions"]),
        ({"training": {"lr": 3}}, ["'lr'", "learning_rate"]),
        ({"training": {"optim": "magic"}}, ["magic"]),
        ({"reft": {"r": 99}}, ["99", "32"]),
        ({"reft": {"layers": "7"}}, ["7", "0..1"]),
        ({"reft": {"positions": "first"}}, ["'first'", "f7+l7"]),
        ({"data": "none.jsonl"}, ["none.jsonl"]),
        ({"model": "no/model"}, ["'no/model'"]),
    ],
)
def test_what_the_user_can_mend_is_one_line(
    reftune: Command, base: Path, data: Path, tmp_path: Path, more: dict[str, Any], parts: list[str]
) -> None:
    assert_user_error(reftune("train", write_yaml(tmp_path, base, data, **more)), *parts)


def test_bad_row_is_named(reftune: Command, base: Path, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "bad.jsonl", [*PAIRS[:4], {"prompt": "w1", "completion": ""}])
    assert_user_error(reftune("train", write_yaml(tmp_path, base, file)), "bad.jsonl", "line 5")


@pytest.mark.parametrize("content", ["- a\n- b\n", "a: [", "", "just text"])
def test_not_a_configuration(reftune: Command, tmp_path: Path, content: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(content)
    assert_user_error(reftune("train", path), "run.yaml")


def test_no_such_configuration(reftune: Command, tmp_path: Path) -> None:
    assert_user_error(reftune("train", tmp_path / "run.yaml"), "run.yaml", "No such file")


def test_the_terminal_is_given_back_when_training_fails(
    reftune: Command, base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars: list[Any] = []
    make = progress.progress_bars

    def recorded(console: Any) -> Any:
        bars.append(make(console))
        return bars[-1]

    def interrupted(self: Any, *args: Any, **kwargs: Any) -> None:
        assert bars[0].live.is_started
        raise KeyboardInterrupt

    monkeypatch.setattr(progress, "progress_bars", recorded)
    monkeypatch.setattr(progress.TrainingProgress, "on_step_end", interrupted)
    assert reftune("train", write_yaml(tmp_path, base, data)).code == 130
    assert not bars[0].live.is_started


def test_a_loss_that_is_not_a_number(
    reftune: Command, base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_yaml(tmp_path, base, data)
    original = training.train_run

    def diverged(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        result.final_loss = float("nan")
        return result

    monkeypatch.setattr(training, "train_run", diverged)
    outcome = reftune("train", config, "--json")
    assert outcome.json["final_loss"] is None
    assert "diverged" in outcome.err


@pytest.mark.slow
def test_script_prints_one_object_and_nothing_else(script: Command, base: Path, data: Path, tmp_path: Path) -> None:
    outcome = script("train", write_yaml(tmp_path, base, data), "--json")
    assert outcome.code == 0, outcome.err
    assert set(outcome.json) == KEYS
    assert "training" in outcome.err
    assert "FutureWarning" not in outcome.err
