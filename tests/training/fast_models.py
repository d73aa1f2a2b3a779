"""Tiny adapted models, ragged rows and trainers for the tests of the short ways, and plain training to compare with.

The plain training is a loop of its own around the model's own loss: it must not know how `ReftTrainer` works.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from reftune import ReftConfig
from reftune.data import ReftCollator
from reftune.training import ReftTrainer
from tests.models import VOCAB, tiny_model
from tests.training.text_models import word_tokenizer

# Large enough that a second step sees what the first one did.
RATE = 0.5

# Trainer collects garbage whenever it starts; what is imported by now need not be looked at each time.
gc.freeze()

RowData = dict[str, Any]
Gradients = dict[str, Tensor]


class Course(NamedTuple):
    """What a run of SGD went through: a loss and gradients a step, evaluation losses."""

    losses: list[float]
    gradients: list[Gradients]
    evaluated: list[float]


def ragged(count: int = 6, *, seed: int = 0, prompts: tuple[int, int] = (1, 14), answers: int = 6) -> list[RowData]:
    """Rows of `prompts` tokens, the shortest and the longest among them, and 1 to `answers` more."""
    draw = random.Random(seed)
    lengths = [*prompts, *(draw.randint(*prompts) for _ in range(count - 2))]
    found: list[RowData] = []
    for length in lengths:
        ids = [draw.randint(3, VOCAB - 1) for _ in range(length + draw.randint(1, answers))]
        found.append({"input_ids": ids, "labels": [-100] * length + ids[length:], "prompt_length": length})
    return found


def adapted(kind: str = "llama", *, depth: int = 3, base: Any = None, seed: int = 0, **fields: Any) -> PeftModel:
    """An adapter that edits from the start, so that a wrong edit shows in the first loss."""
    torch.manual_seed(seed)
    defaults = {"r": 2, "layers": [1], "positions": "l1", "init": "random", "task_type": "CAUSAL_LM"}
    config = ReftConfig(**{**defaults, **fields})
    model = get_peft_model(tiny_model(kind, layers=depth) if base is None else base, config)
    assert isinstance(model, PeftModel)
    return model


def trainer_of(
    folder: Path,
    model: Any,
    data: Any,
    *,
    plain: bool = False,
    collator: Any = None,
    evaluation: Any = None,
    callbacks: Any = None,
    more: dict[str, Any] | None = None,
    **arguments: Any,
) -> Any:
    """`ReftTrainer`, or transformers' own if `plain`, of all rows in one batch; `more` are arguments of ReftTrainer."""
    rows = data if not isinstance(data, list) else Dataset.from_list(data)
    defaults = {
        "report_to": "none",
        "use_cpu": True,
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_steps": 1,
        "optim": "sgd",
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "per_device_train_batch_size": len(data) if isinstance(data, list) else 4,
        "seed": 3,
    }
    kind = Trainer if plain else ReftTrainer
    # Trainer drops prompt_length, which its own signature lacks
    own = {"remove_unused_columns": False} if plain else {}
    return kind(
        model=model,
        args=TrainingArguments(output_dir=str(folder), **{**defaults, **own, **arguments}),
        train_dataset=rows,
        eval_dataset=Dataset.from_list(evaluation) if isinstance(evaluation, list) else evaluation,
        data_collator=collator if collator is not None or not plain else ReftCollator(word_tokenizer()),
        processing_class=word_tokenizer(),
        callbacks=callbacks,
        **(more or {}),
    )


class _Gradients(TrainerCallback):
    def __init__(self) -> None:
        self.found: list[Gradients] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.found.append(gradients_of(model))


def gradients_of(model: nn.Module) -> Gradients:
    trained = ((name, p) for name, p in model.named_parameters() if p.requires_grad)
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in trained}


def course_of(trainer: Any) -> Course:
    """Train, and what came of it."""
    seen = _Gradients()
    trainer.add_callback(seen)
    trainer.train()
    history = trainer.state.log_history
    losses = [entry["loss"] for entry in history if "loss" in entry]
    return Course(losses, seen.found, [entry["eval_loss"] for entry in history if "eval_loss" in entry])


def plain_course(model: Any, data: Sequence[RowData], *, steps: int, evaluation: Sequence[RowData] = ()) -> Course:
    """The same SGD by hand: each step sees all rows, padded on the right, through the model's own loss."""
    collator = ReftCollator(word_tokenizer())
    batch = collator(list(data))
    trained = [p for p in model.parameters() if p.requires_grad]
    course = Course([], [], [])
    for _ in range(steps):
        model.train()
        model.zero_grad()
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        course.losses.append(loss.item())
        course.gradients.append(gradients_of(model))
        with torch.no_grad():
            for p in trained:
                if p.grad is not None:
                    p -= RATE * p.grad
            if evaluation:
                course.evaluated.append(model.eval()(**collator(list(evaluation)), use_cache=False).loss.item())
    return course


def assert_same(found: Course, expected: Course, *, loss: float = 1e-6, gradient: float = 1e-5) -> None:
    """The promise: losses to 1e-6 and gradients to 1e-5, relative, in float32 on a CPU."""
    assert len(found.losses) == len(expected.losses) > 0
    torch.testing.assert_close(torch.tensor(found.losses), torch.tensor(expected.losses), rtol=loss, atol=0.0)
    torch.testing.assert_close(torch.tensor(found.evaluated), torch.tensor(expected.evaluated), rtol=loss, atol=0.0)
    assert len(found.gradients) == len(expected.gradients) == len(found.losses)
    for one, other in zip(found.gradients, expected.gradients, strict=True):
        assert one.keys() == other.keys() and len(one) > 0
        # A gradient that is small against the others is a difference of large numbers: against float64, the plain path
        # itself was seen to be off by 6e-6 in one of a hundredth of the whole.
        whole = torch.stack([g.norm() for g in other.values()]).norm()
        assert whole > 0
        for name in one:
            error = (one[name] - other[name]).norm()
            assert error <= gradient * max(other[name].norm(), 0.1 * whole), f"{name}: {error / other[name].norm()}"


def tokens_through(module: nn.Module) -> list[int]:
    """A list that grows by the number of tokens of every call of `module`, padding included."""
    seen: list[int] = []

    def count(module: nn.Module, args: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        seen.append(hidden.shape[:-1].numel())

    module.register_forward_hook(count)
    return seen


def off_lines(caplog: Any) -> list[str]:
    """Reasons that were printed why there is no reuse."""
    start = "frozen-prefix reuse is off: "
    lines = [record.getMessage() for record in caplog.records if record.name == "reftune"]
    return [line.removeprefix(start) for line in lines if line.startswith(start)]


def on_lines(caplog: Any) -> list[str]:
    """Lines that say how large the store is."""
    lines = [record.getMessage() for record in caplog.records if record.name == "reftune"]
    return [line for line in lines if line.startswith("frozen-prefix reuse: ")]
