"""A job that trains on preferences: TRL's `DPOTrainer` (Rafailov et al., arXiv 2305.18290) with the adapter of the job.

The reference model is the base model: the adapter switched off.

Must not know: the database, HTTP.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from ...data import PromptStyle
from ...models import load_base, save_adapter
from ...training import RunConfig
from ...training.checkpoints import last_whole, only_run
from ...training.run import CHECKPOINTS, RunResult
from ...training.whole import WholeCheckpoints
from .rows import preferences

__all__ = ["train_preferences"]


class PreferenceTrainer(WholeCheckpoints, DPOTrainer):
    """With checkpoints that are whole or none."""


def train_preferences(
    config: RunConfig,
    spec: Mapping[str, Any],
    *,
    resume: bool,
    overwrite: bool,
    callbacks: list[Any],
    on_fill: Any,
) -> RunResult:
    """As `train_run`, for rows of prompt, chosen and rejected answer.

    Raises:
        ReftuneError: the data or the model cannot be had.
    """
    del overwrite, on_fill
    output = Path(config.output)
    with only_run(output):
        rows = preferences(Path(str(config.data))).records
        valid = None if config.eval_data is None else preferences(Path(str(config.eval_data))).records
        checkpoint = last_whole(output / CHECKPOINTS) if resume else None
        base, tokenizer = load_base(config.model, dtype=config.dtype)
        trainer: Any = PreferenceTrainer(
            model=base,
            args=_arguments(config, spec),
            train_dataset=Dataset.from_list(rows),
            eval_dataset=None if valid is None else Dataset.from_list(valid),
            processing_class=tokenizer,
            peft_config=config.reft_config(),
            callbacks=callbacks,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        # how a chat has to be put, so that the adapter is asked as it was trained
        trainer.model.peft_config["default"].prompt_style = PromptStyle.of_records(
            {"messages": [*row["prompt"], *row["chosen"]]} for row in rows
        )
        began = time.perf_counter()
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        seconds = time.perf_counter() - began
        save_adapter(trainer.model, output)
    losses = [(entry["step"], entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    evaluated = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    trained, total = trainer.model.get_nb_trainable_parameters()
    return RunResult(
        model=trainer.model,
        tokenizer=tokenizer,
        adapter_path=output,
        final_loss=losses[-1][1] if losses else float("nan"),
        seconds=seconds,
        trainable_parameters=trained,
        trainable_percent=100 * trained / total,
        steps=trainer.state.global_step,
        losses=losses,
        eval_loss=evaluated[-1] if evaluated else None,
    )


def _arguments(config: RunConfig, spec: Mapping[str, Any]) -> DPOConfig:
    plain = config.training_arguments()
    return DPOConfig(
        output_dir=plain.output_dir,
        seed=config.seed,
        beta=spec["hyperparameters"]["beta"],
        max_length=config.max_length,
        report_to="none",
        use_cpu=plain.use_cpu,
        # TRL's own is bf16, whatever the model is
        bf16=False,
        lr_scheduler_type="linear",
        **{name: value for name, value in config.training.items() if name != "use_cpu"},
    )
