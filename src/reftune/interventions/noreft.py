"""NoReFT: Φ(h) = h + W2ᵀ(act(W1h + b) - W2h), LoReFT with a free W2 for R.  ReFT paper, appendix E.

In the form "delta" it keeps dW = W1 - W2 in place of W1: Φ(h) = h + W2ᵀ(dW h + b).

Must not know: positions, layers, masks.
"""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from reftune.interventions.activations import activation
from reftune.interventions.base import InterventionOptions, LowRankIntervention, like_linear_, start_projection_

__all__ = ["Noreft"]


class Noreft(LowRankIntervention):
    uses: ClassVar[frozenset[str]] = frozenset({"act_fn", "form"})
    no_identity_because: ClassVar[str] = "act(W1h + b) = W2h for every h needs a linear act"

    W1: nn.Parameter
    dW: nn.Parameter
    W2: nn.Parameter
    b: nn.Parameter

    @classmethod
    def parameter_shapes(cls, d: int, options: InterventionOptions) -> dict[str, tuple[int, ...]]:
        projection = "dW" if options.form == "delta" else "W1"
        return {projection: (options.r, d), "W2": (options.r, d), "b": (options.r,)}

    @classmethod
    def supports_identity(cls, act_fn: str | None) -> bool:
        return activation(act_fn) is None

    @classmethod
    def supports_form(cls, form: str, act_fn: str | None) -> bool:
        return form == "direct" or activation(act_fn) is None

    def initialise(self, init: str) -> None:
        like_linear_(self.W2, d=self.d)
        start_projection_(self, "W1", self.W2, init)

    def basis(self) -> Tensor:
        return self.W2

    def linear(self, basis: Tensor) -> tuple[Tensor, Tensor] | None:
        if self.activation is not None:
            return None
        b = self.b.to(basis.dtype)
        if self.options.form == "delta":
            return self.dW.to(basis.dtype), b
        # As one map, W1 = W2 cancels to exactly 0.
        return self.W1.to(basis.dtype) - basis, b

    def coefficients(self, h: Tensor, basis: Tensor) -> Tensor:
        linear = self.linear(basis)
        if linear is not None:
            return F.linear(h, *linear)
        return self.act(F.linear(h, self.W1.to(h.dtype), self.b.to(h.dtype))) - F.linear(h, basis)
