"""On an accelerator: the sets of interventions that are in use, in slots of one tensor, and each token's slot.

Must not know: adapters as they are saved, vLLM's runners.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..folded import Affine

__all__ = ["Bank"]

NONE = -1


class Bank:
    """`table` [slots, layers, 2r + 2, d] in float32: rows of A, of B, g, v; `token_slot` [tokens], −1 for no edit.

    Both keep their addresses.  Slots that no token of a step needs are given to others, the longest unused first.
    """

    def __init__(
        self, *, slots: int, layers: tuple[int, ...], rank: int, width: int, tokens: int, device: torch.device
    ) -> None:
        self.rank = rank
        self.index = {layer: i for i, layer in enumerate(layers)}
        # filled, so that the memory is taken now and vLLM counts it
        self.table = torch.zeros(slots, len(layers), 2 * rank + 2, width, device=device)
        self.token_slot = torch.full((tokens,), NONE, dtype=torch.int32, device=device)
        self.free = list(range(slots))
        self.used: OrderedDict[Any, int] = OrderedDict()

    def forget(self, digest: str) -> None:
        """Free the slots of an adapter."""
        for key in [key for key in self.used if key[0] == digest]:
            self.free.append(self.used.pop(key))

    def assign(
        self, ranges: Mapping[Any, list[tuple[int, int]]], maps_of: Callable[[Any], Mapping[int, Affine]]
    ) -> None:
        """Give each token of the next step its slot."""
        # a fresh array each time: the copy of the last step's may still be under way
        slots = np.full(len(self.token_slot), NONE, dtype=np.int32)
        for key, found in ranges.items():
            slot = self._slot(key, maps_of, ranges)
            for a, b in found:
                slots[a:b] = slot
        self.token_slot.copy_(_staged(torch.from_numpy(slots), self.token_slot.device), non_blocking=True)

    def _slot(self, key: Any, maps_of: Callable[[Any], Mapping[int, Affine]], needed: Mapping[Any, Any]) -> int:
        if key in self.used:
            self.used.move_to_end(key)
            return self.used[key]
        if not self.free:
            # there is one: there are as many slots as the running requests can need at once
            oldest = next(other for other in self.used if other not in needed)
            self.free.append(self.used.pop(oldest))
        slot = self.used[key] = self.free.pop()
        packed = self.packed(maps_of(key))
        self.table[slot].copy_(_staged(packed, self.table.device), non_blocking=True)
        return slot

    def packed(self, maps: Mapping[int, Affine]) -> Tensor:
        """[layers, 2r + 2, d], as a slot has it."""
        found = torch.zeros(self.table.shape[1:])
        for layer, one in maps.items():
            at = found[self.index[layer]]
            if one.A is not None and one.B is not None:
                at[: one.rank], at[self.rank : self.rank + one.rank] = one.A, one.B
            for row, value in ((-2, one.g), (-1, one.v)):
                if value is not None:
                    at[row] = value
        return found

    def apply(self, hidden: Tensor, residual: Tensor | None, layer: int) -> None:
        """Launch the kernel for the output of a block."""
        from .kernel import edit_tokens  # noqa: PLC0415 — needs Triton, which a CPU has not

        edit_tokens(hidden, residual, self.token_slot, self.table[:, self.index[layer]], self.rank)


def _staged(value: Tensor, device: torch.device) -> Tensor:
    return value.pin_memory() if device.type == "cuda" else value
