"""LobiReFT: Φ(h) = h + Rᵀb, R with orthonormal rows: a learned bias in a subspace.  ReFT paper, appendix E.

Must not know: positions, layers, masks.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from reftune.interventions.base import InterventionOptions, OrthonormalIntervention, orthonormal_, uniform_

__all__ = ["Lobireft"]


class Lobireft(OrthonormalIntervention):
    reads_h: ClassVar[bool] = False

    b: nn.Parameter

    @classmethod
    def parameter_shapes(cls, d: int, options: InterventionOptions) -> dict[str, tuple[int, ...]]:
        return {"R": (options.r, d), "b": (options.r,)}

    def initialise(self, init: str) -> None:
        orthonormal_(self.R)
        if init == "identity":
            self.b.zero_()
        else:
            uniform_(self.b, low=0.0, high=1.0)

    def coefficients(self, h: Tensor, basis: Tensor) -> Tensor:
        return self.b.to(h.dtype)
