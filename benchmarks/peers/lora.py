"""PEFT's LoRA, rank 8, on the linear layers that the command names: `all-linear` or `o_proj`.

Must not know: reftune.
"""

from __future__ import annotations

import sys

from peft import LoraConfig, get_peft_model
from torch import Tensor

from .bases import load_base
from .protocol import Batch, StepWorker, serve


class Lora(StepWorker):
    def __init__(self, target: str) -> None:
        self.target = target if target == "all-linear" else [target]

    def build(self) -> None:
        self.base = load_base(self.case)

    def adapt(self) -> None:
        config = LoraConfig(r=8, lora_alpha=16, target_modules=self.target, task_type="CAUSAL_LM")
        self.model = get_peft_model(self.base, config).train()

    def loss(self, batch: Batch) -> Tensor:
        return self.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss


if __name__ == "__main__":
    serve(Lora(sys.argv[1]))
