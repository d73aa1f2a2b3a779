"""Ours: real steps of `ReftTrainer.train()`.

A step here is all that a user of the Trainer pays for one: loader, collator, callbacks, clipping, scheduler, logging's
bookkeeping, besides forward, backward and AdamW.  Training runs as it always does; a callback stops it between steps
until the driver asks for the next.  `start` is from the call of `train()` to the end of the first step: there frozen
parts are computed, if they are reused.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from datasets import Dataset
from peft import get_peft_model
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from reftune import ReftConfig, ReftTrainer

from .bases import load_base, tokenizer_of, training_arguments
from .protocol import Case, Channel, Memory, fingerprint, give_back, serve, synchronise

# training ends when the driver says so
ENDLESS = 1_000_000


class Stepwise(TrainerCallback):
    """Answers the driver's requests between the steps of a training run."""

    def __init__(self, channel: Channel, memory: Memory, case: Case) -> None:
        self.channel = channel
        self.memory = memory
        self.device = case.device
        self.width = case.batch_size * max(len(ids) for ids, _ in case.rows)
        self.epoch_tokens = sum(len(ids) for ids, _ in case.rows)
        self.epoch = 0.0
        self.began = time.perf_counter()
        self.loss = torch.zeros(())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        synchronise(self.device)
        seconds = time.perf_counter() - self.began
        if state.global_step == 1:
            # what is computed once may be computed in the first step; it warms up as well
            self.channel.reply(seconds=seconds)
        else:
            # the order and the make-up of batches are the Trainer's: its own count of the epoch tells what was run
            tokens = self.epoch_tokens * (state.epoch - self.epoch)
            self.channel.reply(seconds=seconds, loss=float(self.loss), tokens=tokens)
        self.epoch = state.epoch
        give_back(self.device, self.width)
        while (request := self.channel.receive())["do"] == "memory":
            self.channel.reply(**self.memory.read())
        control.should_training_stop = request["do"] != "step"
        self.began = time.perf_counter()


class Watched(ReftTrainer):
    """Leaves the loss of a step where the callback finds it."""

    stepwise: Stepwise

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().training_step(*args, **kwargs)
        self.stepwise.loss = loss.detach()
        return loss


class Ours:
    def __init__(self, channel: Channel) -> None:
        self.channel = channel

    def load(self, trainer: dict[str, Any] | None = None, **request: Any) -> dict[str, Any]:
        """`trainer`: further arguments of `ReftTrainer`."""
        torch.manual_seed(0)
        case = Case.of(request)
        base = load_base(case)
        shown = fingerprint(base, base.config.vocab_size, case.device)
        config = ReftConfig(r=case.rank, layers=case.layers, positions=case.positions, task_type="CAUSAL_LM")
        model = get_peft_model(base, config)
        self.case = case
        self.memory_now = Memory(case.device)
        self.trainer = self._trainer(case, model, trainer or {})
        parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        steps = -(-len(case.rows) // case.batch_size)
        return {"parameters": parameters, "fingerprint": shown, "steps_an_epoch": steps}

    def start(self) -> dict[str, Any]:
        """Trains; requests are answered by the callback, until the driver says quit."""
        stepwise = self.trainer.stepwise
        self.memory_now.begin()
        stepwise.began = time.perf_counter()
        self.trainer.train()
        raise SystemExit(0)

    def _trainer(self, case: Case, model: Any, options: dict[str, Any]) -> Watched:
        columns = {
            "input_ids": [ids for ids, _ in case.rows],
            "labels": [[-100] * n + ids[n:] for ids, n in case.rows],
            "prompt_length": [n for _, n in case.rows],
        }
        stepwise = Stepwise(self.channel, self.memory_now, case)
        trainer = Watched(
            model=model,
            args=training_arguments(case, steps=ENDLESS),
            train_dataset=Dataset.from_dict(columns),
            processing_class=tokenizer_of(case),
            callbacks=[stepwise],
            **options,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        trainer.stepwise = stepwise
        return trainer


if __name__ == "__main__":
    channel = Channel()
    serve(Ours(channel), channel)
