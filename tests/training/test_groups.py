"""Learning rates of their own for parts of an adapter: the groups, what they do, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import get_peft_model
from transformers import TrainingArguments

from reftune import ReftConfig, ReftTrainer, ReftuneError, build_dataset, parameter_groups
from reftune.training.run import RunConfig
from tests.training.text_models import PAIRS, text_model, word_tokenizer


def adapted(**values: Any) -> Any:
    torch.manual_seed(0)
    config = {"task_type": "CAUSAL_LM", "r": 2, "positions": "l1", "init": "random", "form": "delta", **values}
    return get_peft_model(text_model(), ReftConfig(**config))


def trainer(model: Any, folder: Path, **values: Any) -> ReftTrainer:
    arguments = TrainingArguments(
        str(folder),
        learning_rate=1e-3,
        weight_decay=0.1,
        max_steps=1,
        per_device_train_batch_size=8,
        lr_scheduler_type="constant",
        report_to=[],
        disable_tqdm=True,
    )
    data: Dataset = build_dataset(PAIRS, word_tokenizer())
    return ReftTrainer(model, arguments, train_dataset=data, processing_class=word_tokenizer(), **values)


def test_groups_have_every_trained_parameter_once() -> None:
    model = adapted(modules_to_save=["lm_head"])
    groups = parameter_groups(model, 1e-3, {"b": 10, "R": 0.5, "lm_head": 0.1}, weight_decay=0.2)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {names[id(p)]: group["lr"] for group in groups for p in group["params"]}
    assert len(found) == sum(len(group["params"]) for group in groups)
    assert set(found) == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    rates = {"R": 5e-4, "b": 1e-2, "dW": 1e-3, "weight": 1e-4}
    assert all(lr == pytest.approx(rates[name.rpartition(".")[2]]) for name, lr in found.items())
    assert {group["weight_decay"] for group in groups} == {0.2}
    torch.optim.AdamW(groups)


def test_the_trainer_steps_each_part_by_its_rate(tmp_path: Path) -> None:
    """The first step of Adam is the learning rate, whatever the gradient."""
    model = adapted()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    run = trainer(model, tmp_path, lr_groups={"b": 10, "R": 0.5})
    run.args.weight_decay = 0.0
    run.train()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            wanted = 1e-3 * {"b": 10, "R": 0.5}.get(name.rpartition(".")[2], 1)
            # a gradient near zero makes a smaller step
            assert (parameter - before[name]).abs().quantile(0.9).item() == pytest.approx(wanted, rel=0.05), name


def test_decay_stays_with_its_group(tmp_path: Path) -> None:
    run = trainer(adapted(), tmp_path, lr_groups={"b": 10})
    run.create_optimizer()
    assert run.optimizer is not None
    found = {(group["lr"], group["weight_decay"]) for group in run.optimizer.param_groups}
    assert found == {(1e-3, 0.1), (1e-2, 0.1)}


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({"Q": 2}, "'Q'.*the interventions have 'R', 'b', 'dW'"),
        ({"b": 0}, "b=0 is not valid"),
        ({"b": "10"}, "b='10' is not valid"),
        ({"b": True}, "b=True is not valid"),
        (["b"], "names and factors"),
    ],
)
def test_what_is_wrong_is_named(factors: Any, message: str) -> None:
    with pytest.raises(ReftuneError, match=message):
        parameter_groups(adapted(), 1e-3, factors)


def test_numbers_are_looked_at_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ReftuneError, match="b=-1 is not valid"):
        trainer(adapted(), tmp_path, lr_groups={"b": -1})
    with pytest.raises(ReftuneError, match="b='high' is not valid"):
        RunConfig("no-model", "no-data", str(tmp_path), lr_groups={"b": "high"})
    assert RunConfig("no-model", "no-data", str(tmp_path), lr_groups={"b": "1e1"}).lr_groups == {"b": 10}
