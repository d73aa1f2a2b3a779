"""Adapters trained on one base in one process: as alone, with what none of them changes computed once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file

from reftune import ReftCollator, ReftConfig, ReftuneError, build_dataset
from reftune.training import RunConfig, SharedPrefix, train_many, train_run
from reftune.training.frozen import frozen_plan
from reftune.training.reuse import FrozenPrefix
from reftune.training.rows import rows_of
from tests.training.text_models import PAIRS, save_base, text_model, word_tokenizer, write_jsonl

TRAINING = {"learning_rate": 1e-2, "num_train_epochs": 3, "per_device_train_batch_size": 4, "save_strategy": "no"}
ADAPTERS: list[dict[str, Any]] = [
    {"positions": "l1", "layers": "all", "r": 2},
    {"positions": "l3", "layers": [1], "r": 1, "intervention": "direft"},
    {"positions": "all", "layers": [1], "r": 2, "dropout": 0.2},
]


def runs(folder: Path, where: str, adapters: list[dict[str, Any]]) -> list[RunConfig]:
    return [
        RunConfig(
            model=str(folder / "base"),
            data=str(folder / "train.jsonl"),
            output=str(folder / where / str(i)),
            seed=i,
            reft=reft,
            training={**TRAINING, "disable_tqdm": True},
        )
        for i, reft in enumerate(adapters)
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_base(tmp_path / "base")
    # long prompts, so that there is much to share
    rows = [{**pair, "prompt": f"{pair['prompt']} " * 5} for pair in PAIRS]
    write_jsonl(tmp_path / "train.jsonl", rows)
    return tmp_path


@pytest.mark.slow
def test_as_each_alone_with_the_base_called_once_a_row(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = [train_run(run) for run in runs(folder, "alone", ADAPTERS)]
    filled: list[int] = []
    record = FrozenPrefix._record

    def counted(self: Any, rows: Any, spans: Any) -> Any:
        filled.append(len(rows))
        return record(self, rows, spans)

    monkeypatch.setattr(FrozenPrefix, "_record", counted)
    together = train_many(runs(folder, "many", ADAPTERS))
    # each row once, and the probe that tells how much room a row needs
    assert sum(filled) <= len(PAIRS) + 3
    for result, one in zip(together, alone, strict=True):
        assert result.error is None and result.steps == one.steps
        assert result.final_loss == pytest.approx(one.final_loss, rel=1e-6)
        first, second = (load_file(path / "adapter_model.safetensors") for path in (one.adapter_path, result.output))
        assert first.keys() == second.keys()
        for name, tensor in first.items():
            assert torch.equal(second[name], tensor)
    assert not (Path(together[0].output) / ".shared-prefix").exists()


@pytest.mark.slow
def test_one_that_fails_is_told_and_the_base_is_as_before(folder: Path) -> None:
    wrong = [ADAPTERS[0], {"layers": [7]}, {"r": 1000}, ADAPTERS[1]]
    found = train_many(runs(folder, "many", wrong))
    assert [result.error is None for result in found] == [True, False, False, True]
    assert "layer 7 does not exist" in str(found[1].error)
    (one,) = train_many(runs(folder, "one", [ADAPTERS[0]]))
    assert one.final_loss == found[0].final_loss
    # what is there is not trained again
    assert "holds a run already" in str(train_many(runs(folder, "many", [ADAPTERS[0]]))[0].error)


def test_runs_that_cannot_be_together_are_refused(folder: Path) -> None:
    (one,) = runs(folder, "many", ADAPTERS[:1])
    (other,) = runs(folder, "many", ADAPTERS[:1])
    with pytest.raises(ReftuneError, match="two runs have the output"):
        train_many([one, other])
    other.dtype = "bfloat16"
    with pytest.raises(ReftuneError, match="dtypes auto, bfloat16"):
        train_many([one, other])
    with pytest.raises(ReftuneError, match="no runs"):
        train_many([])


def test_what_is_shared_serves_adapters_between_the_given_ones_and_no_others(tmp_path: Path) -> None:
    configs = [ReftConfig(positions="l1", layers=[1]), ReftConfig(positions="l3", layers=[2])]
    shared = SharedPrefix(configs, 4, folder=tmp_path)
    assert shared.depths == (1, 2)
    tokenizer = word_tokenizer()
    dataset = build_dataset(PAIRS, tokenizer)
    rows = rows_of(ReftCollator(tokenizer)([dataset[i] for i in range(len(PAIRS))])) or []
    served = {}
    for positions, layer in (("l1", 1), ("l2", 2), ("l2", 3), ("l2", 0), ("l5", 2), ("prompt", 2)):
        model = get_peft_model(text_model(layers=4), ReftConfig(positions=positions, layers=[layer]))
        plan = frozen_plan(model)
        assert not isinstance(plan, str)
        of_shared = shared.plan_of(plan)
        served[positions, layer] = of_shared is not None and shared.covers(of_shared, rows)
    assert served == {
        ("l1", 1): True,
        ("l2", 2): True,
        ("l2", 3): True,
        ("l2", 0): False,
        ("l5", 2): False,
        ("prompt", 2): False,
    }


@pytest.mark.slow
def test_room_for_other_rows_is_made(tmp_path: Path, folder: Path) -> None:
    first, second = runs(folder, "many", [ADAPTERS[0], ADAPTERS[0]])
    other = write_jsonl(tmp_path / "other.jsonl", [{**row, "prompt": f"w9 {row['prompt']} " * 5} for row in PAIRS])
    second.data = str(other)
    plain = train_many(runs(folder, "plain", [ADAPTERS[0]]))
    # for the rows of one of them
    found = train_many([first, second], reuse_limit_gb=3e-4)
    assert [result.error for result in found] == [None, None]
    assert found[0].final_loss == plain[0].final_loss
