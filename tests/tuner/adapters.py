"""Tiny models with a ReFT adapter that does something, for the tests of what PEFT promises.

Must not know: how the tuner works.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import peft
import torch
from torch import Tensor

from reftune import ReftConfig
from tests.models import ENCODER, SEQ2SEQ, random_tokens, tiny_model

TASKS = {**dict.fromkeys(ENCODER, "SEQ_CLS"), **dict.fromkeys(SEQ2SEQ, "SEQ_2_SEQ_LM")}
LAYERS = 2


def config(kind: str = "llama", **fields: Any) -> ReftConfig:
    """An adapter of rank 2 whose start is an edit, unless `fields` say otherwise."""
    return ReftConfig(**{"task_type": TASKS.get(kind, "CAUSAL_LM"), "r": 2, "init": "random", **fields})


def adapted(kind: str = "llama", *, depth: int = LAYERS, name: str = "default", **fields: Any) -> Any:
    """A tiny model with one adapter, in eval mode."""
    model = peft.get_peft_model(tiny_model(kind, layers=depth), config(kind, **fields), adapter_name=name)
    return model.eval()


def inputs(kind: str = "llama", *, batch: int = 3, length: int = 6) -> dict[str, Tensor]:
    """A batch with padding on the left, so that positions are not columns."""
    ids = random_tokens(batch, length)
    mask = torch.ones_like(ids)
    for row in range(1, batch):
        mask[row, :row] = 0
    given = {"input_ids": ids * mask, "attention_mask": mask}
    return {**given, "decoder_input_ids": random_tokens(batch, 4, seed=1)} if kind in SEQ2SEQ else given


@torch.no_grad()
def logits(model: Any, given: Mapping[str, Any] | None = None, **more: Any) -> Tensor:
    """What the model computes, without a graph."""
    return model(**(inputs() if given is None else given), **more).logits


def train_a_little(model: Any, given: Mapping[str, Any] | None = None, *, steps: int = 2) -> Any:
    """A few steps of SGD on what requires a gradient: enough to leave the start."""
    given = dict(inputs() if given is None else given)
    given["labels"] = given["input_ids"].masked_fill(torch.arange(given["input_ids"].shape[1]) < 4, -100)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(**given).loss.backward()
        optimizer.step()
    return model.eval()
