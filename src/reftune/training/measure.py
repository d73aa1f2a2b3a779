"""What `ReftTrainer` logs of the edits: how large they are beside what they edit, and which layer has most of them.

Must not know: the loss, reuse.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.trainer_utils import IntervalStrategy

from ..data.tokenize import IGNORE
from ..tuner import Meter, ReftLayer, call_state, find_root
from .rows import Batch

__all__ = ["EditLog", "counted", "counted_of"]


class EditLog:
    """The edits of the step whose loss is logged, over all of its calls; of other steps nothing is measured."""

    def __init__(self) -> None:
        self.epoch_steps: int | None = None
        """Steps of an epoch; None where that is not known."""
        self._step = -1
        self._meter: Meter | None = None

    @contextmanager
    def measuring(self, model: nn.Module, args: Any, state: Any, kept: Callable[[], Tensor | None]) -> Iterator[None]:
        """Inside, a call in training adds to what is logged of its step, if that will be logged.

        kept() is [B, T], which tokens of the call count; None: all.
        """
        root = find_root(model)
        calls = call_state(root) if model.training and self._is_logged(args, state) else None
        if calls is None or args.torch_compile:
            yield
            return
        if self._step != state.global_step or self._meter is None:
            layers = [module.layer for module in model.modules() if isinstance(module, ReftLayer)]
            self._step, self._meter = state.global_step, Meter(layers, args.device)
        # labels are of the decoder's tokens only: there all that is edited counts
        config: Any = getattr(root, "config", None)
        tokens = None if getattr(config, "is_encoder_decoder", False) else kept()
        with self._meter.counting(tokens), calls.announcing(meter=self._meter):
            yield

    def _is_logged(self, args: Any, state: Any) -> bool:
        step = state.global_step + 1
        if step == 1 and args.logging_first_step:
            return True
        if args.logging_strategy == IntervalStrategy.STEPS:
            return step % state.logging_steps == 0
        ends = self.epoch_steps is None or step % self.epoch_steps == 0
        return args.logging_strategy == IntervalStrategy.EPOCH and ends

    def values(self, state: Any, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """What is logged of the step that has just ended; `reduce` sums over processes."""
        meter, self._meter = self._meter, None
        if meter is None or self._step + 1 != state.global_step:
            return {}
        sums, counts = reduce(meter.totals).double().T.tolist()
        if not sum(counts):
            return {}
        top = max(range(len(sums)), key=lambda i: sums[i])
        found = {"edit_ratio": sum(sums) / sum(counts)}
        if sum(sums) > 0:
            found |= {"edit_top_share": sums[top] / sum(sums), "edit_top_layer": meter.layers[top]}
        return found


def counted(batch: Batch) -> Tensor:
    """[B, T] of a batch's call: the tokens of its texts up to the last that predicts a label."""
    ids = batch.inputs["input_ids"]
    predicts = torch.zeros_like(ids, dtype=torch.bool)
    predicts[batch.rows, batch.columns] = True
    positions = batch.inputs.get("position_ids")
    # of packed rows; those that go on from a cache do not begin at 0
    begins = None if positions is None else positions == 0
    return _up_to_last(predicts, begins)


def counted_of(inputs: Mapping[str, Any]) -> Tensor | None:
    """The same of what a model is called with as it is; where tokens have no labels, all that are no padding."""
    labels, mask = inputs.get("labels"), inputs.get("attention_mask")
    if not isinstance(labels, Tensor) or labels.ndim != 2:
        return mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None
    predicts = nn.functional.pad(labels[:, 1:] != IGNORE, (0, 1))
    positions = inputs.get("position_ids")
    found = _up_to_last(predicts, positions == 0 if isinstance(positions, Tensor) and mask is None else None)
    return found & mask.bool() if isinstance(mask, Tensor) and mask.shape == found.shape else found


def _up_to_last(predicts: Tensor, begins: Tensor | None) -> Tensor:
    """[B, T] → whether a token at this column or behind it, of the same text, is true; begins: where texts begin."""
    columns = torch.arange(predicts.shape[1], device=predicts.device).expand(predicts.shape)
    text = torch.zeros_like(columns) if begins is None else begins.expand(predicts.shape).cumsum(1)
    none = columns.new_full((predicts.shape[0], predicts.shape[1] + 1), -1)
    last = none.scatter_reduce(1, text, torch.where(predicts, columns, -1), "amax")
    return columns <= last.gather(1, text)
