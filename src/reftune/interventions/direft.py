"""DiReFT: Φ(h) = h + W2ᵀ act(W1h + b), W1 and W2 free.  ReFT paper, section 3.2.

pyreft calls this formula "Nodireft"; what it calls "Direft" is our `direft_orthonormal`.
Must not know: positions, layers, masks.
"""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from reftune.interventions.activations import activation
from reftune.interventions.base import InterventionOptions, LowRankIntervention, like_linear_

__all__ = ["Direft"]


class Direft(LowRankIntervention):
    uses: ClassVar[frozenset[str]] = frozenset({"act_fn"})
    has_zero: ClassVar[bool] = True
    no_identity_because: ClassVar[str] = "it starts from W1 = 0 and b = 0, where act must be 0 and have a slope"

    W1: nn.Parameter
    W2: nn.Parameter
    b: nn.Parameter

    @classmethod
    def parameter_shapes(cls, d: int, options: InterventionOptions) -> dict[str, tuple[int, ...]]:
        return {"W1": (options.r, d), "W2": (options.r, d), "b": (options.r,)}

    @classmethod
    def supports_zero(cls, act_fn: str | None) -> bool:
        activation(act_fn)
        return True

    @classmethod
    def supports_identity(cls, act_fn: str | None) -> bool:
        chosen = activation(act_fn)
        return chosen is None or chosen.starts_from_zero

    def initialise(self, init: str) -> None:
        if init == "zero":
            self.W2.zero_()
        else:
            like_linear_(self.W2, d=self.d)
        if init == "identity":
            self.W1.zero_()
        else:
            like_linear_(self.W1, d=self.d)
        if init in ("identity", "zero"):
            self.b.zero_()
        else:
            like_linear_(self.b, d=self.d)

    def basis(self) -> Tensor:
        return self.W2

    def linear(self, basis: Tensor) -> tuple[Tensor, Tensor] | None:
        return None if self.activation is not None else (self.W1.to(basis.dtype), self.b.to(basis.dtype))

    def coefficients(self, h: Tensor, basis: Tensor) -> Tensor:
        return self.act(F.linear(h, self.W1.to(h.dtype), self.b.to(h.dtype)))
