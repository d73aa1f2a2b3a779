"""R as other libraries store it: as it is, or as torch's orthogonal parametrisation; and that its rows are orthonormal.

Must not know: the files of any library.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ReftuneError

__all__ = ["ORTHONORMAL", "check_orthonormal", "from_parametrisation"]

# of the largest entry of RRᵀ − I; a product of Householder reflections in float32 is off by a few 1e-7
ORTHONORMAL = 1e-5


def check_orthonormal(R: Tensor, where: str) -> None:
    """Refuse an R [r, d] whose rows are not orthonormal: it would not be what is computed with here.

    Raises:
        ReftuneError: they are not; the message tells by how much and how that comes about.
    """
    wide = R.double()
    off = float((wide @ wide.mT - torch.eye(len(R), dtype=torch.float64)).abs().max())
    if off <= ORTHONORMAL:
        return
    if not wide.any():
        why = "R is all zeros, which AdamW's weight decay does to it in pyreft; nothing that was learnt is left"
    elif R.dtype in (torch.float16, torch.bfloat16):
        why = f"R was rounded to {str(R.dtype).removeprefix('torch.')} when it was saved; save it in float32"
    else:
        why = (
            "some versions put R together wrongly when they reload it (pyreft 0.0.5 leaves the old rotation in place), "
            "and a checkpoint saved after that has lost it; convert the checkpoint that training wrote"
        )
    raise ReftuneError(f"{where}: the rows of R are not orthonormal, by {off:.1g}: {why}")


def from_parametrisation(X: Tensor, base: Tensor) -> Tensor:
    """[d, r] of what torch stores: `torch/nn/utils/parametrizations.py`, class _Orthogonal, as it is by default.

    Raises:
        ReftuneError: the shapes are not such.
    """
    if X.ndim != 2 or X.shape[0] < X.shape[1] or base.shape != (X.shape[0], X.shape[0]):
        raise ReftuneError(
            f"R is stored as {list(X.shape)} and {list(base.shape)}, which are no shapes of torch's parametrisation"
        )
    if X.shape[0] == X.shape[1]:
        lower = X.tril()
        return base @ torch.matrix_exp(lower - lower.mT)
    A = X.tril(diagonal=-1)
    tau = 2.0 / (1.0 + (A * A).sum(dim=-2))
    # whole numbers: weight decay turns the −1 that they begin as into 0
    return base @ (torch.linalg.householder_product(A, tau) * X.diagonal().int())
