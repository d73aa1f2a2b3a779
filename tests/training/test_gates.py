"""Learned gates: the formula, what is pruned, resuming, and that a planted layer is what stays."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import TrainingArguments

from reftune import ReftConfig, ReftTrainer, ReftuneError, build_dataset
from reftune.training.gates import Gates
from tests.training.text_models import PAIRS, text_model, word_tokenizer

IDS = torch.tensor([[5, 6, 7, 8, 9], [9, 8, 7, 6, 5]])


def adapted(**values: Any) -> PeftModel:
    torch.manual_seed(0)
    config = {"task_type": "CAUSAL_LM", "r": 2, "positions": "l1", "init": "random", **values}
    model = get_peft_model(text_model(), ReftConfig(**config))
    assert isinstance(model, PeftModel)
    return model


def trainer(model: PeftModel, folder: Path, gates: Gates | None, **values: Any) -> ReftTrainer:
    own = {key: values.pop(key) for key in ("reuse",) if key in values}
    arguments = TrainingArguments(
        str(folder),
        **{
            "learning_rate": 1e-2,
            "max_steps": 4,
            "per_device_train_batch_size": 4,
            "lr_scheduler_type": "constant",
            "report_to": [],
            "disable_tqdm": True,
            "use_cpu": True,
            **values,
        },
    )
    data = build_dataset(PAIRS, word_tokenizer())
    return ReftTrainer(model, arguments, train_dataset=data, processing_class=word_tokenizer(), gates=gates, **own)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def set_open(gates: Gates, open_: list[bool]) -> None:
    with torch.no_grad():
        gates.a.copy_(torch.tensor([20.0 if one else -20.0 for one in open_]))


def nothing(module: Any, given: Any, delta: torch.Tensor) -> torch.Tensor:
    return delta * 0


def test_values_and_cost_are_those_of_the_paper() -> None:
    model = adapted(groups=[{"positions": "f1", "r": 1}, {"positions": "l1", "r": 2}], positions="f1+l1")
    gates = Gates(model, penalty=0.7, warmup=0.5)
    with torch.no_grad():
        gates.a.copy_(torch.linspace(-3, 3, len(gates.gates)))
    model.train()
    gates.begin(3, 8)
    drawn, a, u = gates.values().double(), gates.a.detach().double(), gates.noise.double()
    s = 1 / (1 + torch.exp(-(torch.log(u) - torch.log(1 - u) + a) / (2 / 3)))
    assert torch.allclose(drawn, torch.clamp(s * 1.2 - 0.1, 0, 1), atol=1e-6)
    model.eval()
    assert torch.allclose(gates.values().double(), torch.clamp(1.2 / (1 + torch.exp(-a)) - 0.1, 0, 1), atol=1e-6)
    # P(z > 0), by many draws
    model.train()
    wins = torch.zeros(len(gates.gates))
    for step in range(4000):
        gates.begin(step + 10, 8)
        wins += gates.values() > 0
    assert torch.allclose(wins / 4000, gates.open_probability(), atol=0.03)
    gates.begin(2, 8)
    sizes = torch.tensor([gate.parameters for gate in gates.gates], dtype=torch.float64)
    assert len(set(sizes.tolist())) == 2
    open_ = 1 / (1 + torch.exp(-(a - 2 / 3 * math.log(0.1 / 1.1))))
    assert float(gates.cost().detach()) == pytest.approx(
        float(0.7 * 0.5 * (open_ * sizes).sum() / sizes.sum()), rel=1e-5
    )


def test_open_gates_leave_the_edit_and_closed_ones_the_base() -> None:
    model = adapted()
    whole = logits(model)
    with model.disable_adapter():
        base = logits(model)
    gates = Gates(model)
    set_open(gates, [True] * len(gates.gates))
    # with hooks on its parts an edit is not folded, which rounds otherwise
    torch.testing.assert_close(logits(model), whole, rtol=0, atol=2e-6)
    set_open(gates, [False] * len(gates.gates))
    assert torch.equal(logits(model), base) and not torch.equal(base, whole)
    gates.close()
    assert torch.equal(logits(model), whole)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"positions": "f1+l2", "tie": "none"},
        {"groups": [{"positions": "f1"}, {"positions": "l1", "layers": [1], "r": 1}, {"positions": "response"}]},
        {"layers": [0, 1], "component": "attention_output"},
    ],
    ids=["one", "untied", "groups", "attention"],
)
def test_the_pruned_adapter_is_what_stands_behind_open_gates(fields: dict[str, Any], tmp_path: Path) -> None:
    model = adapted(**fields)
    gates = Gates(model)
    torch.manual_seed(1)
    open_ = [bool(x) for x in torch.rand(len(gates.gates)) > 0.5]
    open_[0] = not all(open_)
    open_[-1] = True
    set_open(gates, open_)
    wanted = logits(model)
    sizes = sum(gate.parameters for gate, on in zip(gates.gates, open_, strict=True) if on)
    pruned = gates.pruned()
    alone = logits(pruned)
    torch.testing.assert_close(alone, wanted, rtol=0, atol=2e-6)
    assert pruned.get_nb_trainable_parameters()[0] == sizes
    pruned.save_pretrained(str(tmp_path))
    assert torch.equal(logits(PeftModel.from_pretrained(text_model(), str(tmp_path))), alone)


def test_the_penalty_decides_how_much_stays(tmp_path: Path) -> None:
    kept = []
    for penalty in (0.0, 20.0):
        model = adapted(init="zero")
        gates = Gates(model, penalty=penalty, warmup=0.0, learning_rate=1.0)
        trainer(model, tmp_path / str(penalty), gates, max_steps=12, save_strategy="no").train()
        kept.append(len(gates.open()))
    assert kept == [len(gates.gates), 0]
    with pytest.raises(ReftuneError, match="no gate is open: the penalty of 20"):
        gates.config()


@pytest.mark.slow
def test_a_planted_layer_is_what_stays(tmp_path: Path) -> None:
    """All edits but those of one layer are multiplied by nothing, so that they can only cost."""
    model = adapted(init="zero", positions="all")
    gates = Gates(model, penalty=0.3, warmup=0.2, learning_rate=0.3)
    for gate in gates.gates:
        if gate.layer != 1:
            for phi in gate.phis:
                phi.register_forward_hook(nothing)
    trainer(model, tmp_path, gates, max_steps=60, save_strategy="no", learning_rate=5e-2).train()
    assert [gate.layer for gate in gates.open()] == [1], gates.rows()


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_resumed_training_ends_in_the_same_gates(tmp_path: Path, accumulation: int) -> None:
    def run(name: str, **values: Any) -> tuple[Gates, PeftModel]:
        model = adapted()
        gates = Gates(model)
        more = {"save_steps": 2, "save_strategy": "steps", "gradient_accumulation_steps": accumulation}
        more["per_device_train_batch_size"] = 4 // accumulation
        made = trainer(model, tmp_path / name, gates, **more)
        made.train(**values)
        return gates, model

    whole, model = run("whole")
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    resumed, again = run("again", resume_from_checkpoint=str(checkpoint))
    assert torch.equal(whole.a, resumed.a) and not torch.equal(whole.a, torch.full_like(whole.a, 2.0))
    pairs = zip(model.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    (checkpoint / "gates.safetensors").unlink()
    with pytest.raises(ReftuneError):
        run("broken", resume_from_checkpoint=str(checkpoint))


def test_reuse_changes_nothing(tmp_path: Path) -> None:
    found = []
    for reuse in ("off", "auto"):
        model = adapted(layers=[1])
        gates = Gates(model)
        torch.manual_seed(5)
        more = {"max_steps": 8, "save_strategy": "no", "reuse": reuse}
        trainer(model, tmp_path / reuse, gates, **more).train()
        found.append(gates.a.detach())
    assert torch.allclose(*found, atol=1e-4)


def test_what_is_not_valid_is_refused(tmp_path: Path) -> None:
    model = adapted()
    for name, value in (("penalty", -1.0), ("warmup", 1.0), ("learning_rate", 0.0), ("penalty", float("nan"))):
        with pytest.raises(ReftuneError, match=f"{name}="):
            Gates(model, **{name: value})
    with pytest.raises(ReftuneError, match="one process and with the plain loss"):
        trainer(model, tmp_path, Gates(model), label_smoothing_factor=0.1)
    named = adapted(layers=None, target_modules=["model.layers.1"])
    gates = Gates(named)
    with pytest.raises(ReftuneError, match="names modules"):
        gates.config()
    named.add_adapter("other", ReftConfig(task_type="CAUSAL_LM", positions="f1"))
    tuner: Any = named.base_model
    tuner.set_adapter(["default", "other"])
    with pytest.raises(ReftuneError, match="one active adapter"):
        Gates(named)
