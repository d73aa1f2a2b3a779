"""Searches: what is asked for, rows, trials, several processes, a kill, what is refused, what is picked."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from reftune import DataError, ReftuneError
from reftune.evaluation.own import tasks_of
from reftune.files import read_json
from reftune.search.budget import Budget
from reftune.search.picks import pick, run_values
from reftune.search.rows import rows_of_search
from reftune.search.search import search
from reftune.search.space import Space, layers_of
from reftune.search.study import FILE, NAME, check_optuna, opened
from reftune.search.summary import front
from tests.search.searching import SPACE, config_of, folder_with_rows, start


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_with_rows(tmp_path_factory.mktemp("search"))


# --- what is asked for ------------------------------------------------------------------------------------------------


def test_budgets() -> None:
    assert Budget.of("40 trials") == Budget(trials=40) == Budget.of(40) == Budget.of("40")
    assert Budget.of("30m") == Budget(seconds=1800) == Budget.of("0.5 hours")
    assert [str(Budget.of(text)) for text in ("1", "90m", "2h", "45s")] == ["1 trial", "90m", "2h", "45s"]
    for wrong in ("", "30x", "-1", "1.5 trials", True, None, "m"):
        with pytest.raises(ReftuneError, match="budget="):
            Budget.of(wrong)
    for none in (0, "0 trials", "0m"):
        with pytest.raises(ReftuneError, match="allows no trial"):
            Budget.of(none)


def test_the_first_trials_are_of_the_space_that_is_given() -> None:
    usual = Space()
    assert len(usual.starts()) == 5
    narrow = Space.of(
        {"positions": ["l1", "f2+l2"], "r": 2, "learning_rate": ["1e-5", 1e-4], "layers": [[0, 2], "all"]}
    )
    assert narrow.learning_rate == (1e-5, 1e-4) and narrow.layers == ("0;2", "all")
    for first in narrow.starts():
        assert first["positions"] == "l1" and first["r"] == 2 and first["learning_rate"] == 1e-4
    assert len(narrow.starts()) < 5
    assert narrow.untried([{"positions": "l1", "r": 2}])["positions"] == ["f2+l2"]


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"rank": [1]}, "unknown keys 'rank'"),
        ({"positions": ["l7", "last"]}, "last"),
        ({"r": [0]}, "r=0"),
        ({"r": ["many"]}, "r='many'"),
        ({"learning_rate": [1e-2, 1e-4]}, "ends of a range"),
        ({"positions": []}, "empty"),
        ({"tie": ["all", "all"]}, "twice"),
        ({"warmup": [10]}, "share of the steps"),
    ],
)
def test_spaces_that_no_adapter_could_have(space: dict[str, Any], words: str) -> None:
    with pytest.raises(ReftuneError, match=words):
        Space.of(space)


def test_sets_of_layers() -> None:
    assert layers_of("all", 4) == [0, 1, 2, 3]
    assert layers_of("every 2nd", 5) == [0, 2, 4] and layers_of("every 3rd", 5) == [1, 4]
    assert layers_of("upper half", 5) == [2, 3, 4] and layers_of("upper third", 2) == [1]
    assert layers_of("lower half", 1) == [0] and layers_of("0;-1", 4) == [0, 3]
    with pytest.raises(ReftuneError, match=r"layer 9 does not exist.*'upper half'"):
        Space.of({"layers": ["9"]}).check_layers(4)


# --- rows -------------------------------------------------------------------------------------------------------------


def test_no_prompt_is_on_two_sides(tmp_path: Path) -> None:
    records = [{"prompt": f"p {i % 150}", "completion": str(i % 2)} for i in range(300)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in records), encoding="utf-8")
    (task,) = tasks_of(str(file))

    def rows(**changed: Any) -> Any:
        return rows_of_search(task, **{"held_out": None, "train_rows": None, "seed": 0, "data_dir": None, **changed})

    found = rows()
    sides = [{row["record"]["prompt"] for row in side} for side in (found.train, found.chooses, found.tells)]
    assert found.apart and not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])
    assert len(found.train) == 300 - 2 * (len(found.chooses) + len(found.tells))
    # the same rows choose however many are trained on
    assert rows(train_rows=20).chooses == found.chooses and len(rows(train_rows=20).train) == 20
    with pytest.raises(DataError, match=r"held_out=60 .* at most 37"):
        rows(held_out=60)


def test_too_few_rows(folder: Path, tmp_path: Path) -> None:
    few = folder_with_rows(tmp_path, rows=19)
    with pytest.raises(DataError, match=r"19 rows with different prompts .* too few for a search"):
        search(config_of(few), tmp_path / "out")


# --- trials -----------------------------------------------------------------------------------------------------------


def test_only_the_best_third_of_no_larger_ones_goes_on(tmp_path: Path) -> None:
    with opened(tmp_path, made_from={"a": 1}, space=Space(), sampler="random", seed=0) as study:

        def at_rung(parameters: int, loss: float) -> bool:
            trial = study.next_trial(Budget(trials=99))
            assert trial is not None
            trial.set_user_attr("parameters", parameters)
            return study.is_to_stop(trial, 0, loss)

        assert [at_rung(100, loss) for loss in (3.0, 2.0, 1.0)] == [False, False, False]
        assert at_rung(100, 2.5) and at_rung(100, 1.5) is False
        # smaller than all before, so that there is nothing to compare it with
        assert at_rung(10, 9.0) is False
        assert at_rung(100, 9.5)


@pytest.mark.slow
def test_a_search_and_what_it_tells(folder: Path, tmp_path: Path) -> None:
    said: list[tuple[str, dict[str, Any]]] = []
    config = config_of(folder, finalists=1, seeds=[5, 6], epochs=2, space={**SPACE, "r": [1, 40, 2]})
    found = search(config, tmp_path / "out", say=lambda what, entry: said.append((what, entry)))
    states = Counter(entry["state"] for entry in found["trials"])
    assert sum(states.values()) == 7 and states["done"] >= 2 and states["failed"] == sum(w == "failed" for w, _ in said)
    # a rank above the width is told, and ends nothing
    for entry in found["trials"]:
        assert (entry["state"] == "failed") == (entry["chosen"]["r"] == 40)
        assert entry["state"] != "failed" or "r=40" in entry["error"]
    assert found["scored"] == "forced" and found["rows"] == {"train": 33, "choose": 11, "tell": 11, "apart": False}
    (final,) = found["finals"]
    assert [run["seed"] for run in final["runs"]] == [5, 6]
    assert (tmp_path / "out" / final["runs"][0]["folder"] / "adapter" / "adapter_model.safetensors").is_file()
    assert not any((tmp_path / "out" / "work").iterdir())
    # the same command again does nothing
    said.clear()
    again = search(config, tmp_path / "out", say=lambda what, entry: said.append((what, entry)))
    assert [what for what, _ in said] == ["kept", "kept"] and again["trials"] == found["trials"]
    values = run_values(tmp_path / "out", "best")
    assert len(values["data"]) == 44 and values["reft"]["positions"] == "l1"
    assert values["training"]["num_train_epochs"] == 2


@pytest.mark.slow
def test_gates_say_first_which_layers_are_worth_trying(folder: Path, tmp_path: Path) -> None:
    said: list[str] = []
    output = tmp_path / "gated"
    changed = {"budget": "2 trials", "gates": True}
    found = search(config_of(folder, **changed), output, say=lambda what, entry: said.append(what))
    assert said[:2] == ["gating", "gated"]
    layers = found["gates"]["layers"]
    assert layers == read_json(output / "gates.json")["layers"]
    assert {row["layer"] for row in found["gates"]["gates"] if row["value"] > 0} == set(map(int, layers.split(";")))
    assert found["space"]["layers"][0] == layers and found["trials"][0]["chosen"]["layers"] == layers
    # goes on with what was found, and is another search than the one without gates
    before = (output / "gates.json").stat().st_mtime_ns
    assert len(search(config_of(folder, **{**changed, "budget": "3 trials"}), output)["trials"]) == 3
    assert (output / "gates.json").stat().st_mtime_ns == before
    with pytest.raises(ReftuneError):
        search(config_of(folder, budget="4 trials"), output)
    plain = tmp_path / "plain"
    search(config_of(folder, budget="1 trials"), plain)
    with pytest.raises(ReftuneError, match="holds a search without gates"):
        search(config_of(folder, budget="2 trials", gates=True), plain)


def test_a_state_of_something_else_is_refused(folder: Path, tmp_path: Path) -> None:
    search(config_of(folder, budget=1), tmp_path)
    for changed, words in (
        ({"epochs": 2}, "epochs=1.0, not 2.0"),
        ({"space": {**SPACE, "r": [4]}}, "space="),
        ({"train_rows": 8}, "train_rows=None, not 8"),
    ):
        with pytest.raises(ReftuneError, match=words):
            search(config_of(folder, budget=2, **changed), tmp_path)
    # a larger budget is no other search
    assert len(search(config_of(folder, budget=2, sampler="random"), tmp_path)["trials"]) == 2


def test_budgets_without_time_and_spaces_without_hope(folder: Path, tmp_path: Path) -> None:
    # one trial is done however short the time
    assert len(search(config_of(folder, budget="0.01s"), tmp_path / "short")["trials"]) == 1
    with pytest.raises(ReftuneError, match=r"first 5 trials failed, the last with: .*r=40"):
        search(config_of(folder, space={**SPACE, "r": [40]}), tmp_path / "out")


def study_of(output: Path) -> Any:
    """Optuna's study as it is in the file."""
    optuna = check_optuna()
    backend = optuna.storages.journal.JournalFileBackend(str(output / FILE))
    return optuna.load_study(study_name=NAME, storage=optuna.storages.JournalStorage(backend))


@pytest.mark.slow
def test_two_processes_share_one_search(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    two = [start(folder, output, tmp_path / f"{i}.log", budget="8 trials", epochs=8, finalists=1) for i in range(2)]
    for i, process in enumerate(two):
        process.join(500)
        assert process.exitcode == 0, (tmp_path / f"{i}.log").read_text()
    found = json.loads((output / "results.json").read_text())
    trials = found["trials"]
    assert len(found["finals"][0]["runs"]) == 3
    assert {entry["state"] for entry in trials} <= {"done", "stopped"} and len(trials) == 8
    assert len({entry["worker"] for entry in trials}) == 2
    chosen = [entry["chosen"] for entry in trials]
    assert all(chosen.count(first) == 1 for first in Space.of(SPACE).starts())


@pytest.mark.slow
def test_what_a_killed_process_left_is_tried_again(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    process = start(folder, output, tmp_path / "log", budget="99 trials", epochs=8)
    deadline = time.monotonic() + 120
    states: list[str] = []
    while not {"RUNNING", "COMPLETE"} <= set(states):
        assert time.monotonic() < deadline and process.is_alive(), (tmp_path / "log").read_text()
        time.sleep(0.05)
        states = [t.state.name for t in study_of(output).trials] if (output / "results.json").is_file() else []
    process.kill()
    process.join(60)
    # as if a line was being written
    with (output / FILE).open("ab") as file:
        file.write(b'{"op_code": 4, "wor')
    running = [t.number for t in study_of(output).trials if t.state.name == "RUNNING"]
    done = [t for t in study_of(output).trials if t.state.name not in ("RUNNING", "WAITING")]
    assert len(running) == 1 and any((output / "work").iterdir())
    # the first trials that were not yet begun come before it
    budget = len(done) + len(Space.of(SPACE).starts()) + 1
    found = search(config_of(folder, budget=budget, epochs=8), output)
    assert {entry["state"] for entry in found["trials"]} <= {"done", "stopped"}
    assert len(found["trials"]) == budget and running[0] not in {entry["number"] for entry in found["trials"]}
    assert not any((output / "work").iterdir())
    assert "left" in study_of(output).trials[running[0]].user_attrs
    # it was the second of the first ones, or a later one: each of them is there once
    chosen = [entry["chosen"] for entry in found["trials"]]
    assert all(chosen.count(first) == 1 for first in Space.of(SPACE).starts())


# --- picks ------------------------------------------------------------------------------------------------------------


def trial(number: int, parameters: int, score: float | None) -> dict[str, Any]:
    return {"number": number, "parameters": parameters, "score": score, "loss": 1.0, "state": "done"}


def test_front_and_picks() -> None:
    trials = [trial(0, 100, 0.8), trial(1, 10, 0.5), trial(2, 50, 0.78), trial(3, 60, 0.7), trial(4, 5, None)]
    assert [entry["number"] for entry in front(trials)] == [1, 2, 0]
    found: dict[str, Any] = {"trials": trials, "finals": [], "rows": {"choose": 100}}
    assert pick(found, "best")["number"] == 0
    # 0.78 is within the standard error of 0.8 among 100 rows, 0.5 is not
    assert pick(found, "smallest")["number"] == 2
    assert pick({**found, "finals": [{"number": 3}]}, "best")["number"] == 3
    assert pick(found, "4")["number"] == 4
    for wrong in ("worst", "9", "-1"):
        with pytest.raises(ReftuneError, match="best, smallest"):
            pick(found, wrong)
    with pytest.raises(ReftuneError, match="no trial with a score"):
        pick({**found, "trials": trials[4:]}, "best")
