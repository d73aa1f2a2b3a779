"""`ReftTrainer`: what Trainer promises holds with a ReFT adapter, and positions stay right whatever it does to labels.

Must not know: configuration files, the command line.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import TrainerCallback, TrainingArguments

import reftune.tuner.layer as layer_module
from reftune import DataError, ReftConfig, ReftLayer
from reftune.data import ReftCollator, build_dataset
from reftune.training import ReftTrainer
from tests.training.text_models import PAIRS, text_model, word_tokenizer

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore:.*use_reentrant.*"),
]


def data(records: list[dict[str, str]] = PAIRS) -> Dataset:
    return build_dataset(list(records), word_tokenizer())


def adapted(*, seed: int = 0, base: Any = None, **fields: Any) -> PeftModel:
    torch.manual_seed(seed)
    config = ReftConfig(**{"r": 2, "positions": "f1+l1", "task_type": "CAUSAL_LM", **fields})
    model = get_peft_model(base if base is not None else text_model(), config)
    assert isinstance(model, PeftModel)
    return model


def trainer_of(
    folder: Path, model: PeftModel, *, train: Any = None, callbacks: Any = None, evaluation: Any = None, **more: Any
) -> ReftTrainer:
    defaults = {"report_to": "none", "use_cpu": True, "save_strategy": "no", "disable_tqdm": True, "logging_steps": 1}
    schedule = {"learning_rate": 2e-2, "lr_scheduler_type": "constant", "per_device_train_batch_size": 4, "seed": 7}
    arguments = TrainingArguments(output_dir=str(folder), **{**defaults, **schedule, **more})
    return ReftTrainer(
        model=model,
        args=arguments,
        train_dataset=train if train is not None else data(),
        eval_dataset=evaluation,
        processing_class=word_tokenizer(),
        callbacks=callbacks,
    )


def trained_parameters(model: Any) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def trained_tensors(model: Any) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in trained_parameters(model).items()}


def losses(trainer: ReftTrainer, name: str = "loss") -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


@pytest.fixture
def edited_columns(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, ...]]:
    """(rows, columns, valid) of each edit of spans that was computed."""
    seen: list[tuple[Tensor, ...]] = []
    frame_class: Any = layer_module.Frame
    original = frame_class.slots

    def recorded(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = original(self, *args, **kwargs)
        if found is not None:
            seen.append((found.rows.clone(), found.columns.clone(), found.valid.clone()))
        return found

    monkeypatch.setattr(frame_class, "slots", recorded)
    return seen


def test_training_lowers_the_loss_and_leaves_the_base_alone(tmp_path: Path) -> None:
    base = text_model()
    before = {name: p.detach().clone() for name, p in base.named_parameters()}
    model = adapted(base=base)
    trainer = trainer_of(tmp_path, model, num_train_epochs=20)
    trainer.train()
    history = losses(trainer)
    assert history[-1] < 0.85 * history[0]
    after = dict(model.get_base_model().named_parameters())
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_gradient_accumulation_equals_one_big_batch(tmp_path: Path) -> None:
    # rows of very different response lengths: means of means would differ from the mean
    records = [{**pair, "completion": pair["completion"] * (1 + i)} for i, pair in enumerate(PAIRS)]
    found = []
    for name, size, steps in (("big", 8, 1), ("small", 2, 4)):
        model = adapted()
        trainer = trainer_of(
            tmp_path / name,
            model,
            train=data(records),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            num_train_epochs=4,
        )
        trainer.train()
        found.append((losses(trainer), trained_tensors(model)))
    (big_losses, big), (small_losses, small) = found
    assert len(big_losses) == 4
    # sums of float32 in another order, through four steps of Adam, which divides by the gradient's own size
    torch.testing.assert_close(torch.tensor(small_losses), torch.tensor(big_losses), rtol=1e-4, atol=1e-4)
    for name in big:
        torch.testing.assert_close(small[name], big[name], rtol=1e-3, atol=1e-3)


def mean_loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    logits = outputs["logits"][:, :-1].flatten(0, 1)
    return torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=-100)


@pytest.mark.parametrize("kind", ["label_smoothing", "compute_loss_func", "left_padded"])
def test_same_columns_whatever_becomes_of_the_labels(
    tmp_path: Path, edited_columns: list[tuple[Tensor, ...]], kind: str
) -> None:
    train = data()
    more: dict[str, Any] = {"label_smoothing_factor": 0.1} if kind == "label_smoothing" else {}
    trainer = trainer_of(tmp_path, adapted(), train=train, per_device_train_batch_size=8, max_steps=1, **more)
    if kind != "label_smoothing":
        trainer.compute_loss_func = mean_loss
    if kind == "left_padded":
        trainer.data_collator = ReftCollator(word_tokenizer(), padding_side="left")
    lengths: list[Tensor] = []
    masks: list[Tensor] = []
    collate = trainer.data_collator

    def recorded(features: Any) -> Any:
        batch = collate(features)
        lengths.append(batch["prompt_length"])
        masks.append(batch["attention_mask"])
        return batch

    trainer.data_collator = recorded
    trainer.train()
    starts = masks[0].argmax(1)
    expected = torch.stack([starts, starts + lengths[0] - 1], 1)
    assert sorted(lengths[0].tolist()) == sorted(train["prompt_length"])
    assert edited_columns
    for rows, columns, valid in edited_columns:
        assert torch.equal(rows[:, 0], torch.arange(8))
        assert valid.all()
        assert torch.equal(columns, expected)


def test_smoothed_loss_trains_every_parameter(tmp_path: Path) -> None:
    model = adapted()
    before = trained_tensors(model)
    trainer_of(tmp_path, model, label_smoothing_factor=0.1, max_steps=2).train()
    after = trained_tensors(model)
    assert all(not torch.equal(before[name], after[name]) for name in before)


def test_unused_columns_go_but_prompt_length_stays(tmp_path: Path) -> None:
    train = data().add_column("note", ["x"] * len(PAIRS))
    trainer = trainer_of(tmp_path, adapted(), train=train)
    seen: list[set[str]] = []
    collate = trainer.data_collator

    def recorded(features: Any) -> Any:
        seen.extend(set(feature) for feature in features)
        return collate(features)

    trainer.data_collator = recorded
    batch = next(iter(trainer.get_train_dataloader()))
    assert set(batch) == {"input_ids", "attention_mask", "labels", "prompt_length"}
    assert all("prompt_length" in keys and "note" not in keys for keys in seen)


def test_evaluation_and_prediction(tmp_path: Path) -> None:
    model = adapted()
    trainer = trainer_of(
        tmp_path,
        model,
        evaluation=data(PAIRS[:3]),
        eval_strategy="epoch",
        num_train_epochs=8,
        prediction_loss_only=True,
    )
    trainer.train()
    evaluated = losses(trainer, "eval_loss")
    assert len(evaluated) == 8
    assert evaluated[-1] < evaluated[0]
    # by hand, from the same rows in one batch
    batch = ReftCollator(word_tokenizer())(list(data(PAIRS[:3])))
    with torch.no_grad():
        by_hand = model.eval()(**batch).loss.item()
    assert evaluated[-1] == pytest.approx(by_hand, rel=1e-4)


class _Spoil(TrainerCallback):
    """Makes the model worse from the third epoch on."""

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.epoch > 2:
            with torch.no_grad():
                draw = torch.Generator().manual_seed(0)
                for parameter in trained_parameters(model).values():
                    parameter += 10.0 * torch.randn(parameter.shape, generator=draw)


def test_load_best_model_at_end(tmp_path: Path) -> None:
    model = adapted()
    trainer = trainer_of(
        tmp_path,
        model,
        evaluation=data(),
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        num_train_epochs=4,
        callbacks=[_Spoil()],
    )
    trainer.train()
    evaluated = losses(trainer, "eval_loss")
    best = min(evaluated)
    assert evaluated.index(best) == 1 and evaluated[-1] > best
    assert trainer.evaluate()["eval_loss"] == pytest.approx(best, abs=1e-6)
    best_folder = trainer.state.best_model_checkpoint
    assert best_folder is not None
    reloaded = PeftModel.from_pretrained(text_model(), best_folder, is_trainable=True)
    expected = trained_tensors(reloaded)
    assert all(torch.equal(value, expected[name]) for name, value in trained_tensors(model).items())


class _Interrupt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_resumed_run_is_bit_equal_to_the_uninterrupted_one(tmp_path: Path, dropout: float) -> None:
    common: dict[str, Any] = {
        "per_device_train_batch_size": 2,
        "num_train_epochs": 3,
        "save_strategy": "steps",
        "save_steps": 2,
        "lr_scheduler_type": "linear",
    }
    whole = adapted(dropout=dropout)
    uninterrupted = trainer_of(tmp_path / "whole", whole, **common)
    uninterrupted.train()

    # in the middle of the second epoch, one step after the checkpoint of step 6
    halted = trainer_of(tmp_path / "part", adapted(dropout=dropout), callbacks=[_Interrupt(7)], **common)
    with pytest.raises(KeyboardInterrupt):
        halted.train()

    torch.manual_seed(123)
    resumed = adapted(seed=99, dropout=dropout)
    trainer = trainer_of(tmp_path / "part", resumed, **common)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == uninterrupted.state.global_step == 12
    expected = trained_tensors(whole)
    assert expected
    for name, value in trained_tensors(resumed).items():
        assert torch.equal(value, expected[name]), name
    assert losses(trainer) == losses(uninterrupted)


def test_checkpoints_hold_the_adapter_only(tmp_path: Path) -> None:
    trainer_of(tmp_path, adapted(), save_strategy="epoch", num_train_epochs=1).train()
    folder = tmp_path / "checkpoint-2"
    files = {path.name for path in folder.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= files
    assert not {"model.safetensors", "pytorch_model.bin"} & files
    assert (folder / "adapter_model.safetensors").stat().st_size < 10_000


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_trains_the_same(tmp_path: Path, reentrant: bool) -> None:
    found = []
    for name, more in (
        ("plain", {}),
        (
            "checkpointed",
            {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}},
        ),
    ):
        model = adapted()
        trainer_of(tmp_path / name, model, max_steps=3, **more).train()
        found.append(trained_tensors(model))
    plain, checkpointed = found
    for name in plain:
        torch.testing.assert_close(checkpointed[name], plain[name], rtol=1e-4, atol=1e-5)


def test_bf16_base_keeps_the_adapter_in_float32(tmp_path: Path) -> None:
    model = adapted(base=text_model(dtype=torch.bfloat16))
    trainer = trainer_of(tmp_path, model, num_train_epochs=6)
    trainer.train()
    assert {p.dtype for p in trained_tensors(model).values()} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert losses(trainer)[-1] < losses(trainer)[0]


def test_without_tokenizer_and_collator_it_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="processing_class=tokenizer"):
        ReftTrainer(model=adapted(), args=TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True))


def test_own_collator_needs_no_tokenizer(tmp_path: Path) -> None:
    model = adapted()
    trainer = ReftTrainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(tmp_path), report_to="none", use_cpu=True, max_steps=1, disable_tqdm=True, save_strategy="no"
        ),
        data_collator=ReftCollator(word_tokenizer()),
        train_dataset=data(),
    )
    trainer.train()
    assert trainer.state.global_step == 1
    assert any(isinstance(module, ReftLayer) for module in model.modules())
