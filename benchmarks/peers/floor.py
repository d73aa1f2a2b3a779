"""The floor: forward and backward of the activations of the frozen model; nothing is trained, nothing is adapted.

No method that edits the first block can take less, short of not computing it.  `floor` computes all logits, as models
do by themselves; `floor-response` those of the response only.

Must not know: reftune.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from .bases import load_base
from .protocol import Batch, StepWorker, serve


class Floor(StepWorker):
    def __init__(self, response_only: bool) -> None:
        self.response_only = response_only

    def build(self) -> None:
        self.base = load_base(self.case)

    def adapt(self) -> None:
        self.model = self.base.train()

    def loss(self, batch: Batch) -> Tensor:
        embeds = self.model.get_input_embeddings()(batch.input_ids).detach().requires_grad_()
        given = {"inputs_embeds": embeds, "attention_mask": batch.attention_mask}
        if not self.response_only:
            return self.model(**given, labels=batch.labels).loss
        # the last prompt token predicts the first of the response
        kept = batch.input_ids.shape[1] - min(batch.prompt_lengths) + 1
        logits = self.model(**given, logits_to_keep=kept).logits[:, :-1].float()
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels[:, 1 - kept :].flatten())


if __name__ == "__main__":
    serve(Floor(response_only="--response-only" in sys.argv))
