"""`reftune eval` and `reftune compare`, as a user runs them."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from peft import get_peft_model

from reftune import PromptStyle, ReftConfig
from reftune.cli.evaluate import name_of
from reftune.evaluation import runner
from reftune.evaluation.judge import pair_up, read_answers
from reftune.evaluation.tasks import TASKS
from reftune.models import load_base, save_adapter
from tests.cli.conftest import Command
from tests.evaluation.own.files import jsonl, messages
from tests.evaluation.tasks.rows import SMALL, write_rows
from tests.evaluation.world import causal_folder, encoder_folder, sentences_folder


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = sentences_folder(tmp_path / "data")
    write_rows(folder, {name: rows for name, rows in SMALL.items() if "SST" not in name})
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def adapter(tmp_path: Path) -> str:
    base, _ = load_base(causal_folder(tmp_path / "base"))
    config = ReftConfig(r=2, positions="l1", init="random", task_type="CAUSAL_LM")
    model: Any = get_peft_model(base, config)
    return str(save_adapter(model, tmp_path / "adapter"))


def test_eval_scores_tasks_and_writes_answers(reftune: Command, data: Path, adapter: str, tmp_path: Path) -> None:
    found = reftune("eval", adapter, "--tasks", "sst2,commonsense", "--data-dir", data, "--output", "out", "--json")
    assert found.code == 0, found.err
    scores = found.json["scores"]
    assert len(scores) == 9 and scores["sst2"]["n"] == 16
    lines = [json.loads(line) for line in (tmp_path / "out/sst2.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == list(range(16))
    assert json.loads((tmp_path / "out/summary.json").read_text()) == scores


def test_eval_shows_a_table(reftune: Command, data: Path, adapter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFTUNE_DATA", str(data))
    found = reftune("eval", adapter, "--tasks", "sst2,boolq", "--limit", 5)
    assert found.code == 0, found.err
    assert "SST-2" in found.out and "BoolQ" in found.out and "mean" in found.out
    assert "adapter-eval" in found.out and Path("adapter-eval/boolq.jsonl").is_file()


def test_eval_takes_a_base_model(reftune: Command, data: Path, adapter: str) -> None:
    found = reftune("eval", "base", "--tasks", "sst2", "--data-dir", data, "--json")
    assert found.code == 0 and found.json["scores"]["sst2"]["n"] == 16


def test_eval_of_instructions_asks_for_a_judge(reftune: Command, data: Path, adapter: str) -> None:
    arguments = ("--max-new-tokens", 3, "--output", "out", "--data-dir", data)
    found = reftune("eval", adapter, "--tasks", "alpaca_eval", *arguments)
    assert found.code == 0, found.err
    reference = data / "instruction/alpaca_eval_davinci003.test.jsonl.gz"
    line = f"needs a judge:  reftune judge out/alpaca_eval.json --reference {reference} --endpoint URL --model NAME"
    assert line in found.out.replace(".venv/bin/", "") and reference.is_file()
    outputs = json.loads(Path("out/alpaca_eval.json").read_text())
    assert [row["instruction"] for row in outputs] == ["Name a tree.", "Say nothing."]
    assert {row["generator"] for row in outputs} == {"adapter"}


def test_eval_does_not_mix_answers_of_two_adapters(reftune: Command, data: Path, adapter: str) -> None:
    given = ("--tasks", "sst2", "--data-dir", data, "--output", "out")
    assert reftune("eval", adapter, *given).code == 0
    # the same adapter by another name
    assert reftune("eval", Path(adapter).name, *given).code == 0
    other = reftune("eval", "base", *given)
    assert other.code == 1 and "another --output" in other.err and "--overwrite" in other.err
    assert f"adapter '{Path(adapter).name}' and not 'base'" in other.err
    longer = reftune("eval", adapter, *given, "--max-new-tokens", 2)
    assert longer.code == 1 and "generation {} and not {'max_new_tokens': 2}" in longer.err
    config = Path(adapter) / "adapter_config.json"
    config.write_text(config.read_text() + " ")
    again = reftune("eval", Path(adapter).name, *given)
    assert again.code == 1 and "what was in 'adapter' before" in again.err
    assert reftune("eval", "base", *given, "--overwrite").code == 0
    weights = Path("base/model.safetensors")
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    retrained = reftune("eval", "base", *given)
    assert retrained.code == 1 and "what was in 'base' before" in retrained.err
    summary = Path("out/settings.json")
    summary.write_text(summary.read_text()[:-9])
    damaged = reftune("eval", "base", *given)
    assert damaged.code == 1 and "'out/settings.json' is damaged" in damaged.err


def test_eval_keeps_what_it_has(reftune: Command, data: Path, adapter: str, tmp_path: Path) -> None:
    """Answers beyond a smaller limit, and scores of other tasks."""
    given = ("--data-dir", data, "--output", "out")
    assert reftune("eval", adapter, "--tasks", "sst2", *given).code == 0
    answers = (tmp_path / "out/sst2.jsonl").read_text()
    fewer = reftune("eval", adapter, "--tasks", "sst2,boolq", "--limit", 3, *given, "--json")
    assert fewer.json["scores"]["sst2"]["n"] == 3 and (tmp_path / "out/sst2.jsonl").read_text() == answers
    assert reftune("eval", adapter, "--tasks", "piqa", *given, "--json").json["scores"].keys() == {"piqa"}
    assert json.loads((tmp_path / "out/summary.json").read_text()).keys() == {"sst2", "boolq", "piqa"}


def test_eval_of_a_base_that_is_not_there_leaves_nothing(reftune: Command, data: Path, tmp_path: Path) -> None:
    found = reftune("eval", "bsae", "--tasks", "sst2", "--data-dir", data, "--output", "out")
    assert found.code == 1 and "'bsae'" in found.err and not (tmp_path / "out").exists()
    encoder = reftune("eval", encoder_folder(tmp_path / "bert"), "--tasks", "sst2", "--data-dir", data)
    assert encoder.code == 1 and "is an encoder" in encoder.err


def test_an_adapter_of_a_comparison_is_called_by_its_run() -> None:
    assert name_of("out/runs/0a1b/adapter") == "0a1b" and name_of("my/adapter") == "adapter" and name_of("a") == "a"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--tasks", "sst3"), "'sst3'"),
        (("--tasks", "gsm8k", "--data-dir", "nowhere"), "math/gsm8k.test.jsonl.gz"),
    ],
)
def test_eval_says_what_is_wrong(
    reftune: Command, data: Path, adapter: str, arguments: tuple[str, ...], words: str
) -> None:
    found = reftune("eval", adapter, *arguments)
    assert found.code == 1 and words in found.err and len(found.err.splitlines()) == 1


@pytest.mark.slow
def test_compare_writes_a_report_and_keeps_its_runs(reftune: Command, data: Path, tmp_path: Path) -> None:
    model = causal_folder(tmp_path / "base")
    given = ("--model", model, "--tasks", "sst2", "--epochs", 1, "--data-dir", data, "--output", "out")
    found = reftune("compare", *given, "--methods", "base,loreft", "--json")
    assert found.code == 0, found.err
    assert [Path(page).name for page in found.json["report"]] == ["report.md", "report.html"]
    text = (tmp_path / "out/report.md").read_text()
    assert "LoReFT" in text and "SST-2" in text and "reftune compare" in text
    # one method more: the others are not done again
    again = reftune("compare", *given, "--methods", "base,loreft,direft")
    assert again.code == 0, again.err
    assert again.err.count("kept from before: sst2") == 2 and again.err.count("done (") == 1
    reported = reftune("compare", *given, "--methods", "base,loreft", "--report-only")
    assert reported.code == 0 and "Report: out/report.html" in reported.out
    page = (tmp_path / "out/report.html").read_text()
    # of what is there
    assert reftune("compare", "--report-only", "--output", "out").code == 0
    assert (tmp_path / "out/report.html").read_text() == page
    missing = reftune("compare", "--report-only", "--output", "nowhere")
    assert missing.code == 1 and "'nowhere' holds no results.json" in missing.err


@pytest.mark.slow
def test_compare_goes_on_when_a_run_fails_and_says_so(reftune: Command, data: Path, tmp_path: Path) -> None:
    values = {"model": causal_folder(tmp_path / "base"), "tasks": "sst2", "methods": ["bitfit", "base"], "epochs": 1}
    Path("study.yaml").write_text(yaml.safe_dump(values))
    found = reftune("compare", "study.yaml", "--data-dir", data, "--output", "out")
    assert found.code == 1 and "1 of 2 runs are missing; BitFit on sst2" in found.err and "log.txt" in found.err
    assert "biases" in found.err
    assert (tmp_path / "out/report.html").is_file()


@pytest.mark.slow
def test_compare_on_an_encoder(reftune: Command, data: Path, tmp_path: Path) -> None:
    model = encoder_folder(tmp_path / "encoder")
    given = ("--model", model, "--tasks", "sst2", "--kind", "classes", "--methods", "head_only", "--seeds", "1,2")
    found = reftune("compare", *given, "--epochs", 1, "--data-dir", data, "--output", "out", "--json")
    assert found.code == 0, found.err
    assert [run["seed"] for run in found.json["runs"]] == [1, 2]


@pytest.mark.slow
def test_eval_scores_the_adapter_of_an_encoder(reftune: Command, data: Path, tmp_path: Path) -> None:
    """On all rows; the comparison reports those of one half, which are among them."""
    model = encoder_folder(tmp_path / "encoder")
    given = ("--model", model, "--tasks", "sst2", "--kind", "classes", "--methods", "loreft", "--epochs", 1)
    compared = reftune("compare", *given, "--data-dir", data, "--output", "out", "--json").json["runs"][0]
    run = tmp_path / "out/runs" / compared["key"]
    found = reftune("eval", run / "adapter", "--tasks", "sst2", "--data-dir", data, "--output", "scores", "--json")
    assert found.code == 0, found.err
    lines = [json.loads(line) for line in (run / "sst2.jsonl").read_text().splitlines()]
    scored = [json.loads(line) for line in (tmp_path / "scores/sst2.jsonl").read_text().splitlines()]
    assert [line["answer"] for line in scored] == [line["answer"] for line in lines]
    assert found.json["scores"]["sst2"]["score"] == sum(line["right"] for line in scored) / 16
    other = reftune("eval", run / "adapter", "--tasks", "gsm8k", "--data-dir", data)
    assert other.code == 1 and "gsm8k is no classification" in other.err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--model", "x"), 2, "--tasks"),
        (("--model", "x", "--tasks", "sst2"), 1, "one budget"),
        (("--model", "x", "--tasks", "sst2", "--epochs", "1", "--seeds", "a"), 2, "42,43,44"),
    ],
)
def test_compare_says_what_is_wrong(reftune: Command, arguments: tuple[str, ...], code: int, words: str) -> None:
    found = reftune("compare", *arguments)
    assert found.code == code and words in found.err


def test_help_names_every_task(reftune: Command) -> None:
    shown = reftune("eval", "--help").out
    assert all(name in shown for name in TASKS)


# --- files of one's own -----------------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    jsonl(tmp_path / "train.jsonl", messages(24, first=40))
    return jsonl(tmp_path / "test.jsonl", messages(12))


def test_eval_of_a_file(reftune: Command, own: Path, adapter: str, tmp_path: Path) -> None:
    found = reftune("eval", adapter, "--tasks", "test.jsonl")
    assert found.code == 0, found.err
    assert "3 different answers in 12 rows" in found.err and "scored as labels" in found.err
    assert "test.jsonl" in found.out and "33.3" in found.out, "the share of the most frequent label"
    assert "precision" in found.out and "taken for" in found.out and "macro F1" in found.out
    folder = tmp_path / "adapter-eval"
    summary = json.loads((folder / "summary.json").read_text())["test"]
    assert summary["n"] == 12 and summary["metric"] == "accuracy" and summary["details"]["scored_as"] == "labels"
    assert [one["rows"] for one in summary["details"]["labels"]] == [4, 4, 4]
    lines = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    # the lines of the file
    assert [line["id"] for line in lines] == list(range(1, 13))
    assert [line["reference"] for line in lines][:3] == ["refund", "delivery", "praise"]


def test_eval_scores_what_was_written_anew_when_the_file_or_the_score_changes(
    reftune: Command, own: Path, adapter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ("eval", adapter, "--tasks", "test.jsonl", "--output", "out", "--json")
    assert reftune(*given).json["scores"]["test"]["score"] == 0
    lines = [json.loads(line) for line in (tmp_path / "out/test.jsonl").read_text().splitlines()]
    # what it wrote is right after all, but for the last row, which is taken out
    jsonl(own, [{"prompt": line["prompt"], "completion": line["output"]} for line in lines[:-1]])

    def not_again(*args: Any, **kwargs: Any) -> Any:
        assert not args[2], "nothing is left to generate"
        return iter(())

    monkeypatch.setattr(runner, "generate_batches", not_again)
    again = reftune(*given, "--score", "exact").json["scores"]["test"]
    assert (again["score"], again["n"]) == (1, 11) and again["details"]["exact"] == 1
    assert len((tmp_path / "out/test.jsonl").read_text().splitlines()) == 11


def test_eval_of_free_text_tells_of_a_judge(reftune: Command, own: Path, adapter: str, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"w{i}", "completion": f"We are sorry about the w{i} and send another one today."} for i in range(4)
    ]
    jsonl(own, [*rows, rows[0]])
    found = reftune("eval", adapter, "--tasks", "test.jsonl", "--max-new-tokens", 4)
    assert found.code == 0, found.err
    assert "the answers are free text" in found.err and "ROUGE-L" in found.out and "exact answers" in found.out
    line = next(line for line in found.out.splitlines() if "a judge can tell" in line)
    files = [word for word in shlex.split(line) if word.endswith(".json")]
    pairs, unpaired = pair_up(*(read_answers(file) for file in files))
    assert len(pairs) == 4 and not unpaired


def test_eval_tells_of_prompts_that_are_written_otherwise(reftune: Command, own: Path, adapter: str) -> None:
    PromptStyle("messages", system="Be short.").write(adapter)
    found = reftune("eval", adapter, "--tasks", "test.jsonl")
    assert (
        "written as “prompt”, but the adapter was trained on “messages” with the system turn 'Be short.'" in found.err
    )
    PromptStyle("prompt").write(adapter)
    assert "trained on" not in reftune("eval", adapter, "--tasks", "test.jsonl", "--output", "out").err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--tasks", "tset.jsonl"), "tset.jsonl: no such file"),
        (("--tasks", "test.jsonl", "--score", "bleu"), "score='bleu' is not valid; use one of labels"),
        (("--tasks", "test.jsonl", "--split", "20"), "split=20.0 is not valid"),
        (("--tasks", "sst2", "--score", "exact"), "--score is for files of your own"),
    ],
)
def test_eval_says_what_is_wrong_of_a_file(
    reftune: Command, own: Path, adapter: str, arguments: tuple[str, ...], words: str
) -> None:
    found = reftune("eval", adapter, *arguments)
    assert found.code == 1 and words in found.err and len(found.err.splitlines()) == 1
    assert not Path("adapter-eval").exists()


@pytest.mark.slow
def test_compare_on_a_file_with_a_split(reftune: Command, own: Path, tmp_path: Path) -> None:
    model = causal_folder(tmp_path / "base")
    given = ("compare", "--model", model, "--tasks", "train.jsonl", "--epochs", 1, "--methods", "base,loreft")
    missing = reftune(*given, "--output", "out")
    assert missing.code == 1 and "train.jsonl: there are no rows to train on" in missing.err
    assert "--split 0.2" in missing.err
    found = reftune(*given, "--split", 0.5, "--output", "out", "--json")
    assert found.code == 0, found.err
    assert "scored as labels" in found.err and "rows are scored and not trained on" in found.err
    base, loreft = found.json["runs"]
    tested, trained = base["scores"]["train"]["n"], loreft["train_rows"]["train"]
    assert tested + trained == 24 and loreft["scores"]["train"]["n"] == tested
    text = (tmp_path / "out/report.md").read_text()
    assert "train.jsonl" in text and "scored as labels" in text
    results = json.loads((tmp_path / "out/results.json").read_text())
    samples = results["samples"]["train"]
    assert len(samples) == 10 and all(set(sample["answers"]) == {"base model", "LoReFT"} for sample in samples)
    (test,) = results["paired"]["train"]["others"].values()
    right = {run["label"]: run["scores"]["train"]["score"] for run in (base, loreft)}
    best = results["paired"]["train"]["best"]
    assert test["rows"] == tested and right[best] == max(right.values())
    assert test["difference"] == pytest.approx(max(right.values()) - min(right.values()))
    assert test["only_first"] - test["only_second"] == round(test["difference"] * tested)
    assert (tmp_path / "out" / results["runs"][1]["trained"] / "adapter_config.json").is_file()
    assert f"runs/{loreft['key']}/adapter" in text
    # the same rows, of the adapter that is kept
    run = tmp_path / "out/runs" / loreft["key"]
    again = reftune("eval", run / "adapter", "--tasks", "train.jsonl", "--split", 0.5, "--output", "e", "--json")
    assert again.json["scores"]["train"]["score"] == loreft["scores"]["train"]["score"]
    kept = reftune(*given, "--split", 0.5, "--output", "out")
    assert kept.err.count("kept from before") == 2


@pytest.mark.slow
def test_compare_on_files_of_a_configuration(reftune: Command, own: Path, tmp_path: Path) -> None:
    tasks = [{"file": "test.jsonl", "train": "train.jsonl", "score": "contains", "name": "shop"}]
    values = {"model": causal_folder(tmp_path / "base"), "tasks": tasks, "methods": ["loreft"], "epochs": 1}
    Path("study.yaml").write_text(yaml.safe_dump(values))
    found = reftune("compare", "study.yaml", "--output", "out", "--json")
    assert found.code == 0, found.err
    (run,) = found.json["runs"]
    assert run["train_rows"] == {"shop": 24} and run["scores"]["shop"]["n"] == 12
    assert run["settings"]["tasks"] == tasks
