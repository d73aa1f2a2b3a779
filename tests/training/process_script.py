"""What `test_processes.py` launches in two processes and also runs in one: the same global batches in either case.

Each process writes what it has at the end of a case to `<folder>/<case>-<rank>.pt`.

Must not know: how processes are launched, what is compared.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, TrainingArguments
from transformers.distributed import DistributedConfig

from reftune import ReftConfig
from reftune.data import build_dataset
from reftune.training import ReftTrainer
from reftune.training.processes import average_gradients, end_processes
from tests.training.text_models import PAIRS, text_model, word_tokenizer

RANK = int(os.environ.get("RANK", "0"))
WORLD = int(os.environ.get("WORLD_SIZE", "1"))
# responses of 2 to 16 tokens: a mean of the processes' means is not the mean
RECORDS = [{**pair, "completion": pair["completion"] * (1 + i)} for i, pair in enumerate(PAIRS)]
BATCH = 4


def adapted(base: Any = None, **fields: Any) -> PeftModel:
    # processes that start with different adapters must end up with that of the first
    torch.manual_seed(RANK)
    config = ReftConfig(**{"r": 2, "positions": "f1+l1", "task_type": "CAUSAL_LM", **fields})
    model = get_peft_model(text_model() if base is None else base, config)
    assert isinstance(model, PeftModel)
    return model


def trainer_of(folder: Path, *, model: PeftModel | None = None, **more: Any) -> ReftTrainer:
    dataset = build_dataset(list(RECORDS), word_tokenizer())
    parts = more.get("gradient_accumulation_steps", 1) * (1 if "deepspeed" in more else WORLD)
    arguments: dict[str, Any] = {
        "per_device_train_batch_size": BATCH // parts,
        "num_train_epochs": 2,
        "learning_rate": 2e-2,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 7,
        **more,
    }
    return ReftTrainer(
        model=adapted() if model is None else model,
        args=TrainingArguments(output_dir=str(folder), **arguments),
        train_dataset=dataset,
        processing_class=word_tokenizer(),
    )


def record(folder: Path, case: str, trainer: ReftTrainer) -> None:
    model: Any = trainer.model
    parameters: dict[str, nn.Parameter] = dict(model.named_parameters())
    frozen = [p.data for p in parameters.values() if not p.requires_grad]
    found = {
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "norms": [float(entry["grad_norm"]) for entry in trainer.state.log_history if "loss" in entry],
        "adapter": {name: p.detach().clone() for name, p in parameters.items() if p.requires_grad},
        "frozen_here": sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in frozen),
        "processes": trainer.accelerator.num_processes,
        "kind": str(trainer.accelerator.distributed_type),
    }
    torch.save(found, folder / f"{case}-{RANK}.pt")


def plain(folder: Path) -> None:
    trainer = trainer_of(folder)
    trainer.train()
    record(folder, "plain", trainer)
    # a folder a process, so that it shows who writes
    trainer.save_model(str(folder / f"adapter-{RANK}"))


def accumulated(folder: Path) -> None:
    trainer = trainer_of(folder, gradient_accumulation_steps=2)
    trainer.train()
    record(folder, "accumulated", trainer)


def head(folder: Path) -> None:
    """The output embeddings trained beside the adapter."""
    model = adapted(modules_to_save=["lm_head"])
    trainer = trainer_of(folder, model=model, learning_rate=1e-3)
    trainer.train()
    record(folder, "head", trainer)


def sharded_on_load(folder: Path) -> None:
    """Without accelerate's FSDP2: transformers loads a piece of the base in `<folder>/base` in each process."""
    pieces = DistributedConfig(fsdp_size=WORLD)
    base = AutoModelForCausalLM.from_pretrained(folder / "base", distributed_config=pieces)
    trainer = trainer_of(folder, model=adapted(base))
    assert trainer.is_sharded
    trainer.train()
    record(folder, "sharded_on_load", trainer)


def resumed(folder: Path) -> None:
    """Like `plain`, stopped after half of it and taken up by another trainer."""
    trainer_of(folder / "halves", num_train_epochs=1, save_strategy="epoch").train()
    trainer = trainer_of(folder / "halves", save_strategy="epoch")
    trainer.train(resume_from_checkpoint=True)
    record(folder, "resumed", trainer)


def gradients(folder: Path) -> None:
    """Parameters that took part in all processes, in the last only, and in none."""
    parameters = [nn.Parameter(torch.zeros(2, 3, dtype=dtype)) for dtype in (torch.float32, torch.bfloat16)]
    parameters += [nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(5))]
    for parameter in parameters[:2]:
        parameter.grad = torch.full_like(parameter, RANK + 1)
    if RANK == WORLD - 1:
        parameters[2].grad = torch.full_like(parameters[2], 3)
    average_gradients(parameters)
    torch.save([p.grad for p in parameters], folder / f"gradients-{RANK}.pt")


def zero3(folder: Path) -> None:
    # on CPUs accelerate takes every process of DeepSpeed for the only one: each has the whole batch, and each writes
    zero: dict[str, Any] = {"stage": 3, "stage3_param_persistence_threshold": 0}
    zero["stage3_gather_16bit_weights_on_model_save"] = True
    auto = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    config = {**dict.fromkeys(auto, "auto"), "zero_allow_untested_optimizer": True, "zero_optimization": zero}
    trainer = trainer_of(folder, use_cpu=False, optim="adamw_torch", deepspeed=config)
    trainer.train()
    record(folder, "zero3", trainer)
    trainer.save_model(str(folder / f"adapter-{RANK}"))


CASES = {case.__name__: case for case in (plain, accumulated, head, sharded_on_load, resumed, gradients, zero3)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[2:]:
        CASES[name](Path(sys.argv[1]))
    end_processes()
    # threads of torch that still wait for the interpreter's lock when it ends abort a process now and then
    sys.stdout.flush()
    os._exit(0)
