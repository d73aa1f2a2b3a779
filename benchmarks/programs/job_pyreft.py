"""The ten-example job with pyreft and its trainer, from the start of the process to the saved adapter.

Request: as of `job_ours`, but `rows`: the tokenised examples, the same tokens as ours.  `epochs` may be few: the time
of a step is in the result.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyreft
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    TrainerCallback,
    TrainingArguments,
)

from benchmarks.peers.pyreft import adapted, locations


class Steps(TrainerCallback):
    """Times between the ends of steps."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ends.append(time.perf_counter())


def features(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As pyreft's own datasets are: tensors, and the edited columns for each layer."""
    made = []
    for row in rows:
        ids, prompt = row["input_ids"], row["prompt_length"]
        labels = [-100] * prompt + ids[prompt:]
        columns = [locations(0, 1, prompt)]
        made.append({"input_ids": ids, "labels": labels, "intervention_locations": columns})
    return [{name: torch.tensor(values) for name, values in row.items()} for row in made]


def main(request: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.manual_seed(42)
    tokenizer = AutoTokenizer.from_pretrained(request["model"])
    base = AutoModelForCausalLM.from_pretrained(request["model"], torch_dtype=torch.float32)
    model = adapted(base, [request["layer"]], request["rank"])
    steps = Steps()
    trainer = pyreft.ReftTrainerForCausalLM(
        model=model,
        tokenizer=tokenizer,
        args=TrainingArguments(
            output_dir=tempfile.mkdtemp(prefix="pyreft-bench-"),
            num_train_epochs=request["epochs"],
            per_device_train_batch_size=request["batch_size"],
            learning_rate=request["learning_rate"],
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
        ),
        train_dataset=features(request["rows"]),
        data_collator=pyreft.ReftDataCollator(DataCollatorForSeq2Seq(tokenizer, padding="longest")),
        callbacks=[steps],
    )
    begin = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - begin
    model.set_device("cpu")
    model.save(save_directory=request["output"])
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    between = [b - a for a, b in zip(steps.ends, steps.ends[1:], strict=False)]
    return {
        "training_s": seconds,
        "step_s": statistics.median(between),
        "steps": len(steps.ends),
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "losses": losses,
        "loss": losses[-1],
    }


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
