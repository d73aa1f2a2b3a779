"""ConsReFT: Φ(h) = h + Rᵀ(b - Rh), R with orthonormal rows: a subspace is set to a constant.  ReFT paper, appendix E.

Must not know: positions, layers, masks.
"""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from reftune.interventions.activations import activation
from reftune.interventions.base import InterventionOptions, OrthonormalIntervention, orthonormal_, uniform_

__all__ = ["Consreft"]


class Consreft(OrthonormalIntervention):
    no_identity_because: ClassVar[str] = "it overwrites its subspace with one constant, which changes almost every h"

    b: nn.Parameter

    @classmethod
    def parameter_shapes(cls, d: int, options: InterventionOptions) -> dict[str, tuple[int, ...]]:
        return {"R": (options.r, d), "b": (options.r,)}

    @classmethod
    def supports_identity(cls, act_fn: str | None) -> bool:
        activation(act_fn)
        return False

    def initialise(self, init: str) -> None:
        orthonormal_(self.R)
        uniform_(self.b, low=0.0, high=1.0)

    def coefficients(self, h: Tensor, basis: Tensor) -> Tensor:
        return self.b.to(h.dtype) - F.linear(h, basis)
