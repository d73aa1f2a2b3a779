"""LoReFT of AdapterHub's `adapters`, in its own environment.

Its suffix is the end of the whole sequence, response included: as many edits as the others', at other tokens.
"""

from __future__ import annotations

import adapters
from adapters import LoReftConfig
from torch import Tensor
from transformers import AutoModelForCausalLM

from .protocol import Batch, StepWorker, serve


class AdapterHub(StepWorker):
    def build(self) -> None:
        self.base = AutoModelForCausalLM.from_pretrained(self.case.model["folder"], dtype=self.case.torch_dtype)

    def adapt(self) -> None:
        case, model = self.case, self.base
        adapters.init(model)
        config = LoReftConfig(
            layers=case.layers,
            prefix_positions=case.first,
            suffix_positions=case.last,
            r=case.rank,
            tied_weights=True,
            dropout=0.0,
        )
        model.add_adapter("reft", config=config)
        model.train_adapter("reft")
        self.model = model.train()

    def loss(self, batch: Batch) -> Tensor:
        return self.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss


if __name__ == "__main__":
    serve(AdapterHub())
