"""Orthonormal DiReFT: Φ(h) = h + Rᵀ act(Wh + b), R with orthonormal rows.  ReFT paper, appendix E.

pyreft calls this formula "Direft".
Must not know: positions, layers, masks.
"""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from reftune.interventions.activations import activation
from reftune.interventions.base import InterventionOptions, OrthonormalIntervention, like_linear_, orthonormal_

__all__ = ["DireftOrthonormal"]


class DireftOrthonormal(OrthonormalIntervention):
    uses: ClassVar[frozenset[str]] = frozenset({"act_fn"})
    no_identity_because: ClassVar[str] = "it starts from W = 0 and b = 0, where act must be 0 and have a slope"

    W: nn.Parameter
    b: nn.Parameter

    @classmethod
    def parameter_shapes(cls, d: int, options: InterventionOptions) -> dict[str, tuple[int, ...]]:
        return {"R": (options.r, d), "W": (options.r, d), "b": (options.r,)}

    @classmethod
    def supports_identity(cls, act_fn: str | None) -> bool:
        chosen = activation(act_fn)
        return chosen is None or chosen.starts_from_zero

    def initialise(self, init: str) -> None:
        orthonormal_(self.R)
        if init == "identity":
            self.W.zero_()
            self.b.zero_()
        else:
            like_linear_(self.W, d=self.d)
            like_linear_(self.b, d=self.d)

    def linear(self, basis: Tensor) -> tuple[Tensor, Tensor] | None:
        return None if self.activation is not None else (self.W.to(basis.dtype), self.b.to(basis.dtype))

    def coefficients(self, h: Tensor, basis: Tensor) -> Tensor:
        return self.act(F.linear(h, self.W.to(h.dtype), self.b.to(h.dtype)))
