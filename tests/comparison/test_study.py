"""Comparisons: what runs they take, how these are kept, what fails and what is told of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from reftune import PromptStyle, ReftuneError
from reftune.comparison import compare as module
from reftune.comparison.classify import halves
from reftune.comparison.compare import compare
from reftune.comparison.methods import METHODS
from reftune.comparison.study import Run, StudyConfig, runs_of
from reftune.comparison.worker import WITH_PARENT, run
from reftune.evaluation.data import task_rows
from reftune.evaluation.tasks import TASKS
from tests.evaluation.world import causal_folder, encoder_folder, sentences_folder

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
SMALL_LORA = {"method": "lora", "config": {"r": 1, "target_modules": ["q_proj", "value"]}}


def study(**changed: Any) -> StudyConfig:
    values: dict[str, Any] = {
        "model": "model",
        "tasks": "sst2",
        "methods": ["base", "loreft"],
        "epochs": 1,
        "batch_size": 4,
        **changed,
    }
    return StudyConfig.from_mapping(values)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return sentences_folder(tmp_path / "data")


def settings(tmp_path: Path, method: Any, **changed: Any) -> dict[str, Any]:
    kind = changed.get("kind", "text")
    folder = tmp_path / f"model-{kind}"
    if not folder.is_dir():
        (causal_folder if kind == "text" else encoder_folder)(folder)
    (only,) = runs_of(study(model=str(folder), methods=[method], **changed))
    return only.settings


# --- runs ---------------------------------------------------------------------------------------------------------


def test_runs_are_named_by_what_has_an_effect() -> None:
    runs = runs_of(study(seeds=[1, 2], methods=["base", "loreft", {"method": "loreft", "label": "b", "seeds": [1]}]))
    assert [(r.label, r.seed) for r in runs] == [("base model", 0), ("LoReFT", 1), ("b", 1), ("LoReFT", 2)]
    keys = [r.key for r in runs]
    # a label is only a label
    assert keys[1] == keys[2] and len(set(keys)) == 3
    assert runs_of(study(seeds=[1, 2], title="other"))[1].key == keys[1]
    for changed in ({"epochs": 2}, {"train_rows": 5}, {"dtype": "bfloat16"}, {"batch_size": 8}):
        assert runs_of(study(seeds=[1], **changed))[1].key not in keys
    # how the base is trained has no meaning
    assert runs_of(study(epochs=9))[0].key == keys[0]


def test_several_tasks_together_or_each_alone() -> None:
    assert [r.train_task for r in runs_of(study(tasks="sst2,qqp", methods=["loreft"]))] == ["sst2", "qqp"]
    (together,) = runs_of(study(tasks="commonsense", together=True, methods=["loreft"]))
    assert together.train_task == "commonsense" and len(together.settings["tasks"]) == 8


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"epochs": None}, "one budget"),
        ({"seconds": 3}, "one budget"),
        ({"epochs": 0}, "above 0"),
        ({"kind": "tables"}, "'tables'"),
        ({"tasks": "sst3"}, "'sst3'"),
        ({"methods": ["lorra"]}, "'lorra'.*lora"),
        ({"methods": ["lora", "lora"]}, "'LoRA' is there twice"),
        ({"methods": [{"method": "lora", "rank": 3}]}, "unknown keys 'rank'"),
        ({"methods": []}, "methods is empty"),
        ({"methods": 3}, "methods=3"),
        ({"methods": "lora,lorra"}, "'lorra'"),
        ({"methods": [{"method": "lora", "config": 3}]}, "config of lora is 3"),
        ({"methods": [{"method": "lora", "config": {"rank": 3}}]}, "LoraConfig has no fields 'rank'"),
        ({"methods": [{"method": "bitfit", "config": {"r": 3}}]}, "BitFit has no settings"),
        ({"methods": [{"method": "lora", "training": {"lr": 3}}]}, "training has unknown keys 'lr'"),
        ({"methods": [{"method": "lora", "seeds": 3}]}, "seeds=3"),
        ({"training": {"lr": 3}}, "training has unknown keys 'lr'"),
        ({"generation": 3}, "generation is 3"),
        ({"seeds": []}, r"seeds=\[\]"),
        ({"seeds": 3}, "seeds=3"),
        ({"seeds": [1, 1]}, "a seed twice"),
        ({"test_rows": 0}, "test_rows=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"rows": 3}, "unknown keys 'rows'"),
        ({"tasks": "gsm8k", "kind": "classes"}, "gsm8k cannot be put as a classification"),
        ({"kind": "classes", "together": True}, "together"),
        ({"kind": "classes", "epochs": None, "seconds": 3}, "give epochs"),
    ],
)
def test_what_cannot_be_is_refused(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ReftuneError, match=words):
        study(**changed)


def test_methods_may_be_one_text() -> None:
    assert [r.method for r in runs_of(study(methods="base, lora"))] == ["base", "lora"]


def test_without_training_a_seed_still_draws_a_head_and_the_halves() -> None:
    runs = runs_of(study(kind="classes", seeds=[1, 2]))
    assert [(r.method, r.seed) for r in runs] == [("base", 1), ("loreft", 1), ("base", 2), ("loreft", 2)]


def test_yaml_numbers_may_be_written_as_people_write_them() -> None:
    config = yaml.safe_load("{method: lora, training: {learning_rate: 9e-4}}")
    assert runs_of(study(methods=[config]))[0].settings["training"]["learning_rate"] == 9e-4


# --- one run ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    [
        "base",
        "loreft",
        "direft",
        "noreft",
        "loreft_published",
        SMALL_LORA,
        {"method": "dora", "config": {"r": 1, "target_modules": ["q_proj"]}},
        {"method": "prefix_tuning", "config": {"num_virtual_tokens": 2}},
        "ia3",
        "full",
    ],
    ids=lambda method: method if isinstance(method, str) else method["method"],
)
def test_every_method_is_trained_scored_and_kept(method: Any, tmp_path: Path, data: Path) -> None:
    given = settings(tmp_path, method)
    record = TASKS["sst2"].record(task_rows(TASKS["sst2"], "train", data_dir=data)[0])
    found = run(given, tmp_path / "run", data_dir=str(data))
    assert found == json.loads((tmp_path / "run/result.json").read_text())
    assert found["scores"]["sst2"]["n"] == 16
    if METHODS[given["method"]].trains:
        assert found["steps"] == 6 and found["epochs"] == 1 and found["train_rows"] == {"sst2": 24}
        assert found["trained_parameters"] > 0 and found["adapter_bytes"] > 4 * found["trained_parameters"]
        assert found["cpu_seconds"] > 0
        assert found["peak_memory_mb"] > 0 and 0 <= found["prepare_seconds"] <= found["train_seconds"]
        assert len(found["curve"]) == 1
        # how its prompts were written goes with the adapter, of whichever method
        adapter = tmp_path / "run/adapter"
        assert not adapter.is_dir() or PromptStyle.read(adapter) == PromptStyle.of_record(record)
    else:
        assert found["trained_parameters"] == 0 == found["adapter_bytes"] and "train_seconds" not in found
    # it goes on after the training: what was saved gives the same answers
    lines = tmp_path / "run/sst2.jsonl"
    before = lines.read_text()
    lines.unlink()
    again = run(given, tmp_path / "run", data_dir=str(data))
    assert lines.read_text() == before
    for name in ("trained_parameters", "train_seconds", "curve"):
        assert again.get(name) == found.get(name)


def test_training_learns_and_the_seed_is_all_there_is_to_it(tmp_path: Path, data: Path) -> None:
    given = settings(tmp_path, {"method": "full", "training": {"learning_rate": 3e-3}}, epochs=12)
    found = [run(given, tmp_path / name, data_dir=str(data)) for name in ("a", "b")]
    losses = [[loss for *_, loss in result["curve"]] for result in found]
    assert losses[0] == losses[1] and losses[0][-1] < 0.5 * losses[0][0]
    other = run({**given, "seed": 7}, tmp_path / "c", data_dir=str(data))
    assert [loss for *_, loss in other["curve"]] != losses[0]


def test_bitfit_needs_biases(tmp_path: Path, data: Path) -> None:
    with pytest.raises(ReftuneError, match="LlamaForCausalLM has none"):
        run(settings(tmp_path, "bitfit"), tmp_path / "run", data_dir=str(data))


def test_time_as_budget_ends_the_training_and_the_learning_rate(tmp_path: Path, data: Path) -> None:
    given = settings(tmp_path, "loreft", epochs=None, seconds=3)
    found = run(given, tmp_path / "run", data_dir=str(data))
    # a step or two more than fit: on a busy machine a step may take long
    assert found["train_seconds"] >= 3 and found["epochs"] < 1000 and found["steps"] > 1


def test_held_out_rows_are_not_trained_on_and_the_same_for_all(tmp_path: Path, data: Path) -> None:
    ids = []
    for rows in (4, 8):
        given = settings(tmp_path, "loreft", held_out=True, train_rows=rows, test_rows=10)
        found = run(given, tmp_path / str(rows), data_dir=str(data))
        assert found["train_rows"] == {"sst2": rows}
        ids.append([json.loads(line)["id"] for line in (tmp_path / str(rows) / "sst2.jsonl").read_text().splitlines()])
    assert ids[0] == ids[1] and len(ids[0]) == 10


# --- the protocol of GLUE -----------------------------------------------------------------------------------------


def test_halves_share_nothing_and_change_with_the_seed() -> None:
    first, second = halves(17, 3)
    assert sorted([*first, *second]) == list(range(17)) and abs(len(first) - len(second)) == 1
    assert (halves(17, 3)[0] == first).all() and not (halves(17, 4)[0] == first).all()


@pytest.mark.parametrize("method", ["base", "loreft", SMALL_LORA, "bitfit", "full", "head_only"], ids=str)
def test_best_epoch_on_one_half_is_reported_on_the_other(method: Any, tmp_path: Path, data: Path) -> None:
    if method == SMALL_LORA:
        method = {"method": "lora", "config": {"r": 1, "target_modules": ["query"]}}
    found = run(settings(tmp_path, method, kind="classes", epochs=3), tmp_path / "run", data_dir=str(data))
    score = found["scores"]["sst2"]
    epochs = score["epochs"]
    best = max(range(len(epochs)), key=lambda i: epochs[i][0])
    assert score["best_epoch"] == best + 1 and score["score"] == epochs[best][1] and score["n"] == 8
    assert len(epochs) == (1 if method == "base" else 3)
    lines = [json.loads(line) for line in (tmp_path / "run/sst2.jsonl").read_text().splitlines()]
    reported = [line for line in lines if line["half"] == "reported"]
    assert sum(line["answer"] == line["reference"] for line in reported) / len(reported) == score["score"]


def test_an_encoder_learns_with_its_base_as_it_was(tmp_path: Path, data: Path) -> None:
    method = {"method": "loreft", "config": {"r": 2, "positions": "f2"}, "training": {"learning_rate": 2e-2}}
    found = run(settings(tmp_path, method, kind="classes", epochs=25), tmp_path / "run", data_dir=str(data))
    assert found["scores"]["sst2"]["score"] >= 0.9
    names = set(load_file(tmp_path / "run/adapter/adapter_model.safetensors"))
    assert any("classifier" in name for name in names) and any(name.endswith(".R") for name in names)


# --- whole comparisons --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_runs_in_processes_are_kept_and_failures_told(tmp_path: Path, data: Path) -> None:
    base = causal_folder(tmp_path / "model")
    said: list[tuple[str, str]] = []
    config = study(model=base, methods=["base", "bitfit", "loreft"])

    def say(run: Run, index: int, count: int, what: str, entry: dict[str, Any]) -> None:
        said.append((run.label, what))
        assert ("error" in entry) == (what in ("start", "failed")) and bool(entry["scores"]) == ("error" not in entry)

    for _ in range(2):
        found = compare(config, tmp_path / "out", data_dir=str(data), say=say)
    assert [what for label, what in said if label == "LoReFT"] == ["start", "done", "kept"]
    assert [what for label, what in said if label == "BitFit"] == ["start", "failed"] * 2
    assert found == json.loads((tmp_path / "out/results.json").read_text())
    by_label = {entry["label"]: entry for entry in found["runs"]}
    assert "biases" in by_label["BitFit"]["error"]
    assert by_label["LoReFT"]["peak_memory_mb"] > 100
    assert found["tasks"]["sst2"] == {
        "title": "SST-2",
        "metric": "accuracy",
        "chance": 0.5,
        "train_rows": 24,
        "test_rows": 16,
    }
    # where the data are is not kept
    assert str(data) not in (tmp_path / "out" / "runs" / by_label["LoReFT"]["key"] / "settings.json").read_text()


def test_a_process_that_is_killed_is_told(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.sys, "executable", "/bin/false")
    config = study(model=causal_folder(tmp_path / "model"))
    found = compare(config, tmp_path / "out", data_dir=str(data))
    assert all("killed" in entry["error"] for entry in found["runs"])


def test_what_would_fail_in_every_run_fails_before_the_first(tmp_path: Path, data: Path) -> None:
    model = causal_folder(tmp_path / "model")
    for config, folder, words in (
        (study(model="smolm2"), data, "'smolm2' could not be loaded .* short names are smollm2 and minilm"),
        (study(model=encoder_folder(tmp_path / "encoder")), data, "is an encoder .*--kind classes"),
        (study(model=model, tasks="sst2,gsm8k"), data, "math/gsm8k.test.jsonl.gz"),
    ):
        with pytest.raises(ReftuneError, match=words):
            compare(config, tmp_path / "out", data_dir=str(folder))
    assert not (tmp_path / "out").exists()


def test_runs_on_other_rows_are_not_taken_for_these(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a run that is done nor one that was only trained; nor are they lost."""
    given = settings(tmp_path, "loreft")
    config = study(model=given["model"], methods=["loreft"])
    folder = tmp_path / "out/runs" / runs_of(config)[0].key
    run(given, folder, data_dir=str(data))
    monkeypatch.setattr(module, "in_process", lambda *_: pytest.fail("it is done"))
    for same in (data, sentences_folder(tmp_path / "copy")):
        compare(config, tmp_path / "out", data_dir=str(same))
    # without any rows the results stand
    compare(config, tmp_path / "out", data_dir=str(tmp_path / "nowhere"))
    other = sentences_folder(tmp_path / "other", test=15)
    with pytest.raises(ReftuneError, match="on other rows"):
        compare(config, tmp_path / "out", data_dir=str(other))
    (folder / "result.json").unlink()
    with pytest.raises(ReftuneError, match="on other rows"):
        run(given, folder, data_dir=str(other))
    assert run(given, folder, data_dir=str(data))["rows"]


def test_runs_of_other_weights_are_not_taken_for_these(tmp_path: Path, data: Path) -> None:
    given = settings(tmp_path, "base")
    config = study(model=given["model"], methods=["base"])
    folder = tmp_path / "out/runs" / runs_of(config)[0].key
    run(given, folder, data_dir=str(data))
    weights = Path(given["model"]) / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    with pytest.raises(ReftuneError, match="model that was in the same folder before"):
        compare(config, tmp_path / "out", data_dir=str(data))


def test_a_run_ends_when_the_comparison_is_killed(tmp_path: Path) -> None:
    program = "from reftune.comparison import worker; print('ready', flush=True); worker.end_with_parent()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program], text=True, **pipes) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=1)
        process.stdin.close()
        assert process.wait(timeout=60) == 1


def test_a_comparison_holds_the_standard_input_of_its_runs(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "program"
    # 124: nothing came, and no end of it either
    program.write_text(f'#!/bin/sh\ntimeout 1 cat\necho "$? $@" > {tmp_path / "said"}\n')
    program.chmod(0o755)
    monkeypatch.setattr(module.sys, "executable", str(program))
    compare(study(model=causal_folder(tmp_path / "model"), methods=["base"]), tmp_path / "out", data_dir=str(data))
    said = (tmp_path / "said").read_text().split()
    assert said[0] == "124" and said[-1] == WITH_PARENT


# --- recipes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_is_of_its_method_and_takes_any_model(recipe: Path) -> None:
    values = yaml.safe_load(recipe.read_text())
    runs = runs_of(StudyConfig.from_mapping({"model": "any", **values}))
    assert {r.method for r in runs} == {recipe.stem.split("_")[0]}
    assert len({r.seed for r in runs}) == (5 if "glue" in recipe.stem else 3)


def test_no_recipe_is_missing() -> None:
    sets = ["commonsense", "arithmetic", "ultrafeedback", "ultrafeedback_1k"]
    sets += [f"glue_{name}" for name in ("mnli", "sst2", "mrpc", "cola", "qnli", "qqp", "rte", "stsb")]
    assert {path.stem for path in RECIPES} == {f"{method}_{name}" for method in ("loreft", "direft") for name in sets}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_runs_on_a_tiny_model(recipe: Path, tmp_path: Path) -> None:
    from tests.evaluation.tasks.rows import SMALL, write_rows
    from tests.models import tiny_model
    from tests.training.text_models import word_tokenizer

    # four times each: halves of a few rows must not be empty
    write_rows(tmp_path / "data", {name: rows * 4 for name, rows in SMALL.items()})
    values = yaml.safe_load(recipe.read_text())
    kind, vocabulary = values.get("kind", "text"), len(word_tokenizer())
    # eight layers: the recipes for instructions name four
    model = tiny_model("bert" if kind == "classes" else "llama", layers=8, overrides={"vocab_size": vocabulary})
    model.save_pretrained(tmp_path / "model")
    word_tokenizer().save_pretrained(tmp_path / "model")
    values |= {"model": str(tmp_path / "model"), "epochs": 1, "seeds": [1], "dtype": "float32"}
    values |= {"generation": {"max_new_tokens": 2}, "test_rows": 4}
    (only,) = runs_of(StudyConfig.from_mapping(values))
    torch.manual_seed(0)
    found = run(only.settings, tmp_path / "run", data_dir=str(tmp_path / "data"))
    assert found["steps"] >= 1 and set(found["scores"]) == set(only.settings["tasks"])
