"""Steering: Φ(h) = h + a·v, a scalar strength and a direction.  "Activation addition", ReFT paper, section 2.

With `vector="given"` the direction is fixed: make the module, then call `set_vector`; only the strength is trained.
Must not know: positions, layers, masks.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from reftune.interventions.base import Intervention, InterventionOptions, normal_

__all__ = ["Steer"]


class Steer(Intervention):
    has_subspaces: ClassVar[bool] = False
    uses: ClassVar[frozenset[str]] = frozenset({"vector"})
    reads_h: ClassVar[bool] = False

    a: nn.Parameter
    v: Tensor

    @classmethod
    def parameter_shapes(cls, d: int, options: InterventionOptions) -> dict[str, tuple[int, ...]]:
        return {"a": (1,), "v": (d,)} if options.vector == "learned" else {"a": (1,)}

    @classmethod
    def buffer_shapes(cls, d: int, options: InterventionOptions) -> dict[str, tuple[int, ...]]:
        return {"v": (d,)} if options.vector == "given" else {}

    def initialise(self, init: str) -> None:
        given = self.options.vector == "given"
        # A given vector must not undo the identity once it is set, so there the strength is what starts at 0.
        self.a.fill_(0.0 if given and init == "identity" else 1.0)
        # Nobody gave a random vector: except for "random", which promises an edit, a given one is 0 until set.
        if init == "random" or (init == "paper" and not given):
            normal_(self.v, std=1 / math.sqrt(self.d))
        else:
            self.v.zero_()

    def set_vector(self, v: Tensor) -> None:
        """Copy v [d] in, rounded to the storage dtype."""
        if v.shape != (self.d,):
            raise ValueError(f"the steering vector has shape {list(v.shape)}: it must be [{self.d}]")
        with torch.no_grad():
            self.v.copy_(v)

    def edit(self, h: Tensor, rank_mask: Tensor | None) -> Tensor:
        return (self.a.to(h.dtype) * self.v.to(h.dtype)).expand_as(h)
