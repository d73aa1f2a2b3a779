"""RED: Φ(h) = s ⊙ h + b, a scale and a bias per channel.  Compared with in the ReFT paper, sections 2 and 4.

Must not know: positions, layers, masks.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from reftune.interventions.base import Intervention, InterventionOptions, normal_

__all__ = ["Red"]


class Red(Intervention):
    has_subspaces: ClassVar[bool] = False

    s: nn.Parameter
    b: nn.Parameter

    @classmethod
    def parameter_shapes(cls, d: int, options: InterventionOptions) -> dict[str, tuple[int, ...]]:
        return {"s": (d,), "b": (d,)}

    def initialise(self, init: str) -> None:
        if init == "random":
            normal_(self.s, mean=1.0, std=0.02)
            normal_(self.b, std=0.02)
        else:  # the published start is the identity already
            self.s.fill_(1.0)
            self.b.zero_()

    def edit(self, h: Tensor, rank_mask: Tensor | None) -> Tensor:
        return (self.s.to(h.dtype) - 1.0) * h + self.b.to(h.dtype)
