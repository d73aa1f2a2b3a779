"""LoReFT: Φ(h) = h + Rᵀ(act(Wh + b) - Rh), R with orthonormal rows.  ReFT paper (arXiv 2404.03592), section 3.2.

In the form "delta" it keeps dW = W - R in place of W: Φ(h) = h + Rᵀ(dW h + b), the same maps, of which dW = b = 0 is
the identity whatever R is.

Must not know: positions, layers, masks.
"""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from reftune.interventions.activations import activation
from reftune.interventions.base import InterventionOptions, OrthonormalIntervention, orthonormal_, start_projection_
from reftune.interventions.orthonormal import orthonormal_rows

__all__ = ["Loreft"]


class Loreft(OrthonormalIntervention):
    uses: ClassVar[frozenset[str]] = frozenset({"act_fn", "form"})
    no_identity_because: ClassVar[str] = "act(Wh + b) = Rh for every h needs a linear act"

    W: nn.Parameter
    dW: nn.Parameter
    b: nn.Parameter

    @classmethod
    def parameter_shapes(cls, d: int, options: InterventionOptions) -> dict[str, tuple[int, ...]]:
        projection = "dW" if options.form == "delta" else "W"
        return {"R": (options.r, d), projection: (options.r, d), "b": (options.r,)}

    @classmethod
    def supports_identity(cls, act_fn: str | None) -> bool:
        return activation(act_fn) is None

    @classmethod
    def supports_form(cls, form: str, act_fn: str | None) -> bool:
        return form == "direct" or activation(act_fn) is None

    def initialise(self, init: str) -> None:
        orthonormal_(self.R)
        start_projection_(self, "W", orthonormal_rows(self.R), init)

    def linear(self, basis: Tensor) -> tuple[Tensor, Tensor] | None:
        if self.activation is not None:
            return None
        b = self.b.to(basis.dtype)
        if self.options.form == "delta":
            return self.dW.to(basis.dtype), b
        # As one map, with the rows rounded as W is stored, W = R cancels to exactly 0; it is also one product less.
        return self.W.to(basis.dtype) - basis.to(self.W.dtype).to(basis.dtype), b

    def coefficients(self, h: Tensor, basis: Tensor) -> Tensor:
        linear = self.linear(basis)
        if linear is not None:
            return F.linear(h, *linear)
        return self.act(F.linear(h, self.W.to(h.dtype), self.b.to(h.dtype))) - F.linear(h, basis)
