"""What the trainer logs of the edits, against hooks of one's own on one row at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import get_peft_model
from torch import Tensor
from transformers import TrainingArguments

from reftune import ReftConfig
from reftune.data import build_dataset
from reftune.training import ReftTrainer
from reftune.training.frozen import frozen_plan
from reftune.tuner import Meter
from tests.training.text_models import PAIRS, text_model, word_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:transformers")

LAYERS = 3
GROUPS = [
    {"layers": [1, 2], "positions": "f1+l1", "tie": "group"},
    {"layers": [2], "positions": "response", "intervention": "direft", "r": 1},
    {"layers": [1], "positions": "id(40,42)-prompt", "component": "mlp_output"},
]


def rows_of_data() -> Dataset:
    return build_dataset(
        [{**pair, "completion": pair["completion"] * (1 + i % 3)} for i, pair in enumerate(PAIRS)], word_tokenizer()
    )


def adapted() -> Any:
    torch.manual_seed(0)
    config = ReftConfig(r=2, groups=GROUPS, init="random", task_type="CAUSAL_LM")
    return get_peft_model(text_model(layers=LAYERS), config)


def ratios(model: Any, row: dict[str, Any]) -> list[tuple[int, float]]:
    """(layer, ‖edit‖ / ‖state‖) of each edit of a row, up to the token that predicts its last one."""
    ids, n = row["input_ids"], row["prompt_length"]
    response = range(n, len(ids) - 1)
    where = {
        ("layers.1", 1): {0, n - 1},
        ("layers.2", 2): {0, n - 1, *response},
        ("layers.1.mlp", 1): {i for i in response if ids[i] in (40, 42)},
    }
    found, handles = [], []
    for (name, layer), columns in where.items():
        module = model.get_base_model().get_submodule(f"model.{name}")
        before: list[Tensor] = []

        def first(_: Any, args: Any, out: Any, before: list[Tensor] = before) -> None:
            before.append((out[0] if isinstance(out, tuple) else out).clone())

        def last(_: Any, args: Any, out: Any, before: Any = before, layer: int = layer, columns: Any = columns) -> None:
            after = out[0] if isinstance(out, tuple) else out
            for i in columns:
                found.append((layer, float((after[0, i] - before[0][0, i]).norm() / before[0][0, i].norm())))

        handles += [module.register_forward_hook(first, prepend=True), module.register_forward_hook(last)]
    with torch.no_grad():
        model(torch.tensor([ids]), prompt_length=torch.tensor([n]))
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ({"reuse": "off"}, {"per_device_train_batch_size": 8}),
        ({"reuse": "off"}, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}),
        ({"reuse": "auto"}, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}),
        ({"packing": True}, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}),
        # Trainer's own way, and blocks that are computed twice
        ({}, {"per_device_train_batch_size": 8, "label_smoothing_factor": 0.1}),
        ({}, {"per_device_train_batch_size": 8, "gradient_checkpointing": True}),
        ({}, {"per_device_train_batch_size": 8, "logging_strategy": "epoch"}),
    ],
)
def test_what_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], arguments: dict[str, Any]
) -> None:
    measured: list[int] = []
    own = Meter._add_up

    def counted(self: Meter) -> None:
        measured.append(trainer.state.global_step)
        own(self)

    monkeypatch.setattr(Meter, "_add_up", counted)
    model, rows = adapted(), rows_of_data()
    every = 1 if "logging_strategy" in arguments else 2
    given = {"max_steps": 4, "logging_steps": 2, "learning_rate": 0.0, **arguments}
    fixed = {"report_to": "none", "use_cpu": True, "save_strategy": "no", "disable_tqdm": True}
    trainer = ReftTrainer(
        model,
        TrainingArguments(output_dir=str(tmp_path), **fixed, **given),
        train_dataset=rows,
        processing_class=word_tokenizer(),
        **options,
    )
    trainer.train()
    assert (trainer._frozen is not None) == (options.get("reuse") == "auto") or "reuse" not in options
    wanted: dict[int, list[float]] = {1: [], 2: []}
    for row in rows:
        for layer, value in ratios(model.eval(), dict(row)):
            wanted[layer].append(value)
    sums = {layer: sum(values) for layer, values in wanted.items()}
    assert all(len(values) > 16 for values in wanted.values())
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in logged] == list(range(every, 5, every))
    for entry in logged:
        # all rows are in each step, and nothing learns
        assert entry["edit_ratio"] == pytest.approx(sum(sums.values()) / sum(map(len, wanted.values())), rel=1e-4)
        assert entry["edit_top_layer"] == max(sums, key=lambda layer: sums[layer])
        assert entry["edit_top_share"] == pytest.approx(max(sums.values()) / sum(sums.values()), rel=1e-4)
    # of other steps nothing is
    assert {step + 1 for step in measured} == {entry["step"] for entry in logged}


def test_the_rows_are_such_that_reuse_has_something_to_do() -> None:
    plan = frozen_plan(adapted())
    assert not isinstance(plan, str) and plan.replayed == 0
