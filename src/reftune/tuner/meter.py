"""How large the edits of a call are, as its hooks make them.

Must not know: adapters, positions, who asks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["Meter"]


class Meter:
    """Σ ‖edit‖ / ‖state‖ over the edited tokens, and their number, by layer; without gradients, in float32 at least.

    It listens within `counting` only: what a block computes anew in the backward pass is not counted twice.
    """

    def __init__(self, layers: Sequence[int], device: torch.device) -> None:
        self.layers = sorted(set(layers))
        self.totals = torch.zeros(len(self.layers), 2, device=device)
        """[layers, 2]: the sum, and the number of edits in it."""
        self._kept: Tensor | None = None
        self._listens = False
        self._seen: list[tuple[int, Tensor, Tensor, Tensor | None]] = []

    @contextmanager
    def counting(self, kept: Tensor | None) -> Iterator[None]:
        """Inside, edits are counted, of a call whose tokens count where kept [B, T] is true; None: all of them."""
        self._kept, self._listens = kept, True
        try:
            yield
            self._add_up()
        finally:
            self._kept, self._listens = None, False
            self._seen.clear()

    def see(self, layer: int, h: Tensor, delta: Tensor, tokens: Tensor | None, valid: Tensor | None) -> None:
        """h and delta [N, P, d]; tokens [N, P] counted through all rows of the call, None: its own; valid [N, P]."""
        if not self._listens or torch.compiler.is_compiling():
            return
        # a vector a row is no token
        if self._kept is not None and (tokens is not None or self._kept.shape == h.shape[:2]):
            kept = self._kept if tokens is None else self._kept.flatten().to(tokens.device)[tokens]
            valid = kept if valid is None else kept.to(valid.device) & valid
        self._seen.append((layer, _norms(delta), _norms(h), valid))

    def _add_up(self) -> None:
        device = self.totals.device
        for layer, edit, state, valid in self._seen:
            counts = state > 0 if valid is None else (state > 0) & valid.to(state.device)
            ratio = torch.where(counts, edit / state, 0).sum()
            self.totals[self.layers.index(layer)] += torch.stack([ratio, counts.sum()]).to(device)


def _norms(x: Tensor) -> Tensor:
    """[N, P, d] → [N, P]"""
    return torch.linalg.vector_norm(x.detach(), dim=-1, dtype=torch.promote_types(x.dtype, torch.float32))
