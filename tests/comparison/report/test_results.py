"""`results.json` into types: what is read, and what is refused by the place where it is wrong."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reftune.comparison.compare import results_of
from reftune.comparison.report import read_results
from reftune.comparison.study import StudyConfig, runs_of
from reftune.errors import DataError
from reftune.files import write_json
from tests.comparison.report.fakes import fake_results

Change = Callable[[dict[str, Any]], object]


def small() -> dict[str, Any]:
    return fake_results(methods=2, tasks=1, seeds=(42, 43))


def test_a_file_and_what_it_holds_are_read_alike(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps(small()), encoding="utf-8")
    found = read_results(path)
    assert found == read_results(small())
    base, run = found.runs[0], found.runs[2]
    assert (base.trains, base.train_seconds, run.trains, run.label, run.seed) == (False, None, True, "LoReFT", 43)
    assert run.scores["sst2"].n == 500 and len(run.curve) == 25 and found.tasks["sst2"].chance == 0.5


def test_what_is_not_finite_is_not_known() -> None:
    given = small()
    given["runs"][1]["scores"]["sst2"] |= {"score": math.nan, "low": math.inf, "high": None}
    given["runs"][1]["curve"].append([130, 9.0, math.nan])
    run = read_results(given).runs[1]
    score = run.scores["sst2"]
    assert (score.score, score.low, score.high) == (None, None, None)
    assert len(run.curve) == 25


def test_a_failed_run_needs_no_measurements() -> None:
    given = small()
    given["runs"][1] = {"method": "loreft", "label": "LoReFT", "train_task": "sst2", "seed": 42, "error": "killed"}
    found = read_results(given)
    assert [run.error for run in found.failed] == ["killed"] and len(found.done) == 2


def test_keys_of_later_versions_are_left_alone() -> None:
    given = small()
    given["colour"] = "green"
    given["runs"][1]["scores"]["sst2"]["best_of"] = 3
    assert read_results(given) == read_results(small())


WRONG: dict[str, tuple[Change, str]] = {
    "no title": (lambda r: r.pop("title"), "the file: lacks title"),
    "no runs": (lambda r: r.update(runs=[]), "runs: is empty"),
    "runs no list": (lambda r: r.update(runs={}), "runs: {} must be a list"),
    "title no text": (lambda r: r.update(title=3), "title: 3 must be a text"),
    "budget": (lambda r: r["budget"].update(kind="steps"), "budget.kind: 'steps' is not valid"),
    "no budget": (lambda r: r["budget"].update(value=0), "budget.value: 0 is not valid"),
    "no metric": (lambda r: r["tasks"]["sst2"].pop("metric"), "tasks.sst2: lacks metric"),
    "no label": (lambda r: r["runs"][0].pop("label"), "runs[0]: lacks label"),
    "no scores": (lambda r: r["runs"][1].pop("scores"), "runs[1]: lacks scores"),
    "no time": (lambda r: r["runs"][1].pop("train_seconds"), "runs[1]: lacks train_seconds"),
    "score as text": (lambda r: r["runs"][1]["scores"]["sst2"].update(score="0.9"), "runs[1].scores.sst2.score: '0.9'"),
    "score true": (lambda r: r["runs"][1]["scores"]["sst2"].update(score=True), "runs[1].scores.sst2.score: True"),
    "ends": (
        lambda r: r["runs"][1]["scores"]["sst2"].update(low=0.9, high=0.1),
        "runs[1].scores.sst2: low=0.9 is above",
    ),
    "rows": (lambda r: r["runs"][1]["scores"]["sst2"].update(n=None), "runs[1].scores.sst2.n: the number of test rows"),
    "unknown task": (lambda r: r["runs"][1]["scores"].update(x={}), "runs[1].scores: there is no task 'x'"),
    "half a step": (lambda r: r["runs"][1].update(steps=1.5), "runs[1].steps: 1.5 must be a whole number"),
    "time": (lambda r: r["runs"][1].update(train_seconds=-1), "runs[1].train_seconds: -1 is below 0"),
    "curve": (lambda r: r["runs"][1]["curve"].append([1, 2]), "runs[1].curve[25]: [1, 2] is not"),
    "twice": (lambda r: r["runs"].append(r["runs"][1]), "runs[3]: label, train_task, seed and task 'sst2' are"),
    "label twice": (
        lambda r: r["runs"][1].update(label="base model"),
        "runs[1]: the label 'base model' is also that of",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_malformed_results_are_refused_by_file_and_place(name: str, tmp_path: Path) -> None:
    change, message = WRONG[name]
    given = small()
    change(given)
    path = tmp_path / "results.json"
    path.write_text(json.dumps(given), encoding="utf-8")
    with pytest.raises(DataError, match=re.escape(f"{path}: {message}")):
        read_results(path)


@pytest.mark.parametrize("content", ["", "{", "[1]", '"text"'])
def test_what_is_no_comparison_is_refused_by_name(content: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=r"other\.json"):
        read_results(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.json"):
        read_results(tmp_path / "absent.json")


def test_what_a_comparison_writes_is_read(tmp_path: Path) -> None:
    """One run is done, one that trains nothing is done, one is not."""
    config = StudyConfig(model="none", tasks="sst2", methods=["base", "loreft", "lora"], epochs=2)
    base, loreft, _ = runs_of(config)
    fake = fake_results(methods=2, tasks=1, seeds=(42,))["runs"]
    size = ("trained_parameters", "trained_percent", "adapter_bytes")
    fit = ("train_seconds", "prepare_seconds", "steps", "epochs", "peak_memory_mb", "curve")
    for run, entry, names in ((base, fake[0], size), (loreft, fake[1], size + fit)):
        result = {name: entry[name] for name in names} | {"scores": entry["scores"], "train_rows": {"sst2": 1000}}
        write_json(tmp_path / "runs" / run.key / "result.json", result)
    found = read_results(results_of(config, tmp_path, command="reftune compare"))
    assert [run.label for run in found.done] == ["base model", "LoReFT"]
    assert [run.label for run in found.failed] == ["LoRA"]
    assert found.done[1].key == loreft.key and found.config["epochs"] == 2
