"""`scripts/gpu.sh` on toy sizes on the CPU, to the last line; what its parts do with time and failures; the report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import PARTS, checks, edit, recipes, report
from benchmarks.gpu.common import Part, in_processes
from benchmarks.gpu.shapes import SHAPES, step_flops
from benchmarks.wanted import write_latest

ROOT = Path(__file__).parent.parent
PAGE = f"# A\n\n{report.BEGIN}\nold\n{report.END}\n\nend\n"


def part(folder: Path, seconds: float = 60.0) -> Part:
    return Part("edit", out=folder, device="cpu", tiny=True, until=time.time() + seconds)


def content(folder: Path, name: str = "edit") -> dict[str, Any]:
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


# --- a part -----------------------------------------------------------------------------------------------------------


def test_each_measurement_is_in_the_file_when_it_is_made(tmp_path: Path) -> None:
    made = part(tmp_path)
    seen = []
    for value in (1.0, 2.0):
        made.attempt(f"case {value}", lambda v=value: {"x": v})
        seen.append(list(content(tmp_path)["measurements"]))
    assert seen == [["case 1.0"], ["case 1.0", "case 2.0"]]
    assert not content(tmp_path)["complete"]
    made.finish()
    assert content(tmp_path)["complete"]
    assert [file.name for file in tmp_path.iterdir()] == ["edit.json"]


def test_what_fails_or_does_not_fit_is_named_and_the_part_goes_on(tmp_path: Path) -> None:
    made = part(tmp_path, seconds=30)

    def broken() -> dict[str, Any]:
        raise RuntimeError("no such kernel")

    made.attempt("broken", broken)
    made.attempt("long", lambda: {"x": 1.0}, needs=100)
    made.attempt("short", lambda: {"x": 1.0}, needs=1)
    found = content(tmp_path)["measurements"]
    assert found["broken"]["error"] == "RuntimeError: no such kernel" and "broken" in found["broken"]["where"][-1]
    assert "about 100 are needed" in found["long"]["skipped"]
    assert found["short"]["x"] == 1.0


def squared(number: float, seconds: float = 0.0) -> dict[str, Any]:
    time.sleep(seconds)
    if number < 0:
        raise ValueError(f"{number} is negative")
    return {"x": number**2}


def test_jobs_that_fail_keep_the_others(tmp_path: Path) -> None:
    found = dict(in_processes(part(tmp_path), squared, {"a": (3.0,), "b": (-1.0,)}, workers=1))
    assert found["a"] == {"x": 9.0} and found["b"]["error"] == "ValueError: -1.0 is negative"


@pytest.mark.slow
def test_processes_that_are_not_done_in_time_are_ended(tmp_path: Path) -> None:
    begin = time.perf_counter()
    jobs = {"short": (3.0,), "broken": (-1.0,), "long": (1.0, 500.0)}
    # each has to import torch first
    found = dict(in_processes(part(tmp_path, seconds=60), squared, jobs, workers=3))
    assert found["short"] == {"x": 9.0} and "negative" in found["broken"]["error"]
    assert "not done" in found["long"]["error"]
    assert time.perf_counter() - begin < 100


def test_a_kernel_that_cannot_run_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert edit.problem(part(tmp_path)) == "Triton is not installed"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "TRITON_INTERPRET=1" in str(edit.problem(part(tmp_path)))


def test_flops_of_a_step_are_those_of_its_weights_twice() -> None:
    shape = SHAPES["8B"]
    # 6.98 billion weights in the blocks, 2 operations a weight and token, forward and back
    blocks = step_flops(shape, batch=16, length=512, labelled=0)
    assert blocks == pytest.approx(2 * 2 * 6.98e9 * 16 * 512, rel=0.03)
    logits = step_flops(shape, batch=16, length=512, labelled=32) - blocks
    assert logits == pytest.approx(2 * 2 * 16 * 32 * 4096 * 128256)


def test_tests_that_were_ended_tell_of_those_that_were_done() -> None:
    said = (
        "collected 3 items\n\ntests/tuner/test_gpu.py::test_a[autocast float16] PASSED [ 33%]\n"
        "tests/tuner/test_gpu.py::test_b FAILED [ 66%]\ntests/tuner/test_gpu.py::test_c "
    )
    found = checks.results_in(said)
    assert found["test_a[autocast float16]"] == {"passed": True}
    assert list(found) == ["test_a[autocast float16]", "test_b"] and "error" in found["test_b"]


# --- what is good by default ------------------------------------------------------------------------------------------


def test_recipes_go_from_what_was_best_on_held_out_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a made-up score, the stages find the form, the rate and the ranks that it prefers."""
    done: list[dict[str, Any]] = []

    def work(settings: dict[str, Any], folder: str, data: str) -> str:
        done.append(settings)
        config, rate = settings["config"], settings["training"]["learning_rate"]
        score = 0.5 - abs(rate - 2e-3)
        score += 0.2 * (settings["method"] == "direft") + 0.1 * (config.get("positions") == "l7")
        score += 0.15 * (config.get("positions") == "all")
        (name,) = (task.get("name", "own") if isinstance(task, dict) else task for task in settings["tasks"])
        content = {"scores": {name: {"score": score, "n": 1}}}
        file = Path(folder) / "result.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(content), encoding="utf-8")
        return "done"

    monkeypatch.setattr(recipes, "work", work)
    made = Part("recipes", out=tmp_path, device="cpu", tiny=True, until=time.time() + 60)
    runner = recipes.Runner(made, 1, "")
    recipes.Stages(runner, tmp_path / "recipes", {**recipes.COMMON, "model": "smollm2"}, None).run()
    chosen = json.loads((tmp_path / "recipes" / "chosen.json").read_text(encoding="utf-8"))
    # `all` has the higher score, but is not free where tokens are generated
    assert chosen["winner"]["config"] == {"init": "zero", "positions": "l7", "r": 8}
    assert chosen["winner"]["training"] == chosen["small"]["training"] == {"learning_rate": 2e-3}
    assert chosen["small"]["config"]["r"] == 4 and chosen["other"] != chosen["winner"]
    assert {choice["training"]["learning_rate"] for choice in chosen["loras"]} == {2e-3}
    # nothing was chosen by rows that are not held out, and every form that went on had as many rates as LoRA
    tested = [settings for settings in done if not settings["held_out"]]
    assert {settings["seed"] for settings in tested} == {42, 43, 44}
    rates = {}
    for settings in done:
        if settings["held_out"] and settings["tasks"] == ["mnli"] and settings["config"].get("r") in (1, 8):
            key = json.dumps([settings["method"], settings["config"]], sort_keys=True)
            rates.setdefault(key, set()).add(settings["training"]["learning_rate"])
    assert sorted(map(len, rates.values())) == [2] * 8 + [4] * 6
    assert sum(len(stage["scores"]) for stage in content(tmp_path, "recipes")["measurements"].values()) > 40


# --- the report -------------------------------------------------------------------------------------------------------


def files_of_a_gpu(folder: Path) -> None:
    """As a run on a GPU leaves them, with made-up numbers."""
    stamp = {
        "date": "2026-12-01T10:00:00+00:00",
        "device": "cuda",
        "tiny": False,
        "machine": "NVIDIA H200, a processor, 16 cores (16 used), 128 GiB",
        "python": "3.12.3",
        "cuda": "13.0",
        "versions": {"torch": "2.11.0"},
    }

    def step(seconds: float, memory: float) -> dict[str, Any]:
        times = {"median_s": seconds, "seconds": [seconds, seconds], "tokens_s": 8192 / seconds, "tflop_s": 300.0}
        return {**times, "peak_mb": memory, "before_mb": 1.0, "parameters": 5}

    steps = {
        "matrix products": {"tflop_s": 600.0},
        "8B: floor": step(0.4, 50000.0),
        "8B: ours, all layers f7+l7": step(0.41, 51000.0),
        "8B: LoRA r 8, all linear": step(0.8, 90000.0),
        "8B: ours, prompt": {"error": "OutOfMemoryError: no room"},
    }
    edits = {
        "rank 4, bfloat16, sum": {"right": True, "worst_of_allowed": 0.5},
        "rank 128, float32, sum": {"right": False, "worst_of_allowed": 7.0},
        "decode, batch 8, 1 adapters": {"us_a_layer": 3.0, "kb": 10.0, "gb_s": 1000.0},
    }
    for name, found, complete in (("edit", edits, True), ("steps", steps, False)):
        made = {"part": name, "complete": complete, "seconds": 100.0, "stamp": stamp, "measurements": found}
        (folder / f"{name}.json").write_text(json.dumps(made))


def test_the_report_of_a_gpu_goes_to_its_places(tmp_path: Path) -> None:
    files_of_a_gpu(tmp_path)
    page, results = tmp_path / "page.md", tmp_path / "results"
    page.write_text(PAGE)
    results.mkdir()
    cpu = {"name": "step: ÷ floor", "value": 1.0, "wanted": "at most 1.03", "met": True}
    write_latest(results / "latest.json", [cpu])
    file = report.write_report(tmp_path, results=results, page=page)
    assert file.name == "2026-12-01_h200.md"
    text = file.read_text(encoding="utf-8")
    assert "1 of 2 checks are right" in text and "Wrong: rank 128, float32, sum." in text
    assert "| ours, all layers f7+l7 | 0.410 (0.410–0.410) | 1.025 | 19,980 | 50.0% | 51,000 | 0.567 | 5 |" in text
    assert "8B: ours, prompt: failed: OutOfMemoryError: no room" in text
    assert "**Ended before it was done**" in text and text.count("Not run.") == len(PARTS) - 2
    changed = page.read_text(encoding="utf-8")
    assert changed.startswith("# A\n") and changed.endswith("\n\nend\n") and "old" not in changed
    assert "| GPU, 8B shape: step ÷ floor with response logits | 1.025 | at most 1.05 | met |" in changed
    latest = json.loads((results / "latest.json").read_text())["targets"]
    assert [(t["name"], t["met"]) for t in latest] == [
        ("step: ÷ floor", True),
        ("GPU, 8B shape: step ÷ floor with response logits", True),
        ("GPU, 8B shape: peak memory ÷ LoRA all linear", True),
    ]
    # a later run on the CPU leaves them
    write_latest(results / "latest.json", [{**cpu, "value": 2.0}])
    assert [t["value"] for t in json.loads((results / "latest.json").read_text())["targets"]] == [2.0, 1.025, 0.5667]


def test_nothing_is_written_where_something_is_missing(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# no marks\n")
    with pytest.raises(FileNotFoundError, match=r"none of edit\.json"):
        report.write_report(tmp_path, results=tmp_path / "results", page=page)
    files_of_a_gpu(tmp_path)
    with pytest.raises(ValueError, match="the page has no"):
        report.write_report(tmp_path, results=tmp_path / "results", page=page)
    assert not (tmp_path / "results").exists()


def test_the_page_of_results_has_the_marks() -> None:
    text = report.PAGE.read_text(encoding="utf-8")
    assert report.with_block(text, "x").count("x\n" + report.END) == 1


# --- all of it --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_script_runs_to_its_last_line_without_a_gpu(tmp_path: Path) -> None:
    environment = {**os.environ, "OUT": str(tmp_path), "PYTHON": sys.executable, "OMP_NUM_THREADS": "2"}
    command = ["bash", "scripts/gpu.sh", "--tiny", "--device", "cpu"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    log = (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert done.returncode == 0, done.stdout[-3000:] + log[-3000:]
    # the comparisons of `recipes`, where its rows are
    files = {file.name for file in tmp_path.iterdir()} - {"recipes.tgz"}
    assert files == {*(f"{p}.json" for p in PARTS), "log.txt", "table.md"}
    for name in PARTS:
        found = content(tmp_path, name)
        assert found["complete"] and found["measurements"], name
        assert {key: row["error"] for key, row in found["measurements"].items() if "error" in row} == {}
    assert "ours, middle layer l1 with reuse" in done.stdout and "frozen-prefix reuse" in json.dumps(
        content(tmp_path, "steps")
    )
    # toys are no report of the repository's own, but they can be laid out
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    report.write_report(tmp_path, results=tmp_path / "results", page=page)
    assert "Toy sizes: no measurement" in next((tmp_path / "results").glob("*.md")).read_text(encoding="utf-8")
    assert report.main(["report", str(tmp_path)]) == 1


@pytest.mark.slow
def test_the_script_says_that_there_is_no_gpu(tmp_path: Path) -> None:
    environment = {**os.environ, "OUT": str(tmp_path), "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(["bash", "scripts/gpu.sh"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "torch sees no CUDA device" in done.stdout and "nothing was run" in done.stdout
