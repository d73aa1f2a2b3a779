"""pyreft's LoReFT, in its own environment: its model, called as its trainer calls it."""

from __future__ import annotations

import pyreft
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from .protocol import Batch, StepWorker, serve


def adapted(base: torch.nn.Module, layers: list[int], rank: int) -> pyreft.ReftModel:
    """One Φ a layer, for all its positions."""
    representations = [
        {
            "layer": layer,
            "component": "block_output",
            "low_rank_dimension": rank,
            "intervention": pyreft.LoreftIntervention(
                embed_dim=base.config.hidden_size, low_rank_dimension=rank, dtype=torch.float32
            ),
        }
        for layer in layers
    ]
    return pyreft.get_reft_model(base, pyreft.ReftConfig(representations=representations))


def locations(first: int, last: int, prompt_length: int) -> list[int]:
    """Edited columns of a row padded on the right."""
    if prompt_length < first + last:
        raise ValueError(f"a prompt of {prompt_length} tokens has no {first + last} edited ones")
    return [*range(first), *range(prompt_length - last, prompt_length)]


class Pyreft(StepWorker):
    def build(self) -> None:
        self.base = AutoModelForCausalLM.from_pretrained(self.case.model["folder"], torch_dtype=self.case.torch_dtype)

    def adapt(self) -> None:
        self.model = adapted(self.base, self.case.layers, self.case.rank)
        self.model.train()

    def loss(self, batch: Batch) -> Tensor:
        case = self.case
        columns = [locations(case.first, case.last, n) for n in batch.prompt_lengths]
        _, outputs = self.model(
            {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask},
            unit_locations={"sources->base": (None, [columns] * len(case.layers))},
            labels=batch.labels,
        )
        return outputs.loss


if __name__ == "__main__":
    serve(Pyreft())
