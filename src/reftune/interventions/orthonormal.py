"""Rows made orthonormal, differentiably, from a free matrix; and the dtype and autocast rules of that and of every Φ.

Must not know: interventions.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

__all__ = ["autocast_off", "orthonormal_rows"]

NOTHING = nullcontext()


def autocast_off(device_type: str) -> AbstractContextManager[object]:
    """Turn autocast off where it is on; `meta` has none."""
    # not torch.amp.is_autocast_available, which torch.compile of torch 2.11 cannot read
    if device_type != "meta" and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return NOTHING


def orthonormal_rows(raw: Tensor) -> Tensor:
    """[..., r, d] -> [..., r, d] with orthonormal rows and the same leading row spans, in `raw`'s dtype or float32.

    The thin QR of rawᵀ, its signs fixed so that the triangular factor has a positive diagonal.  That makes it one
    function of `raw`: rows that are orthonormal already come back up to rounding, and the scale of `raw` is without
    effect, so that weight decay cannot wear the rows down.  Its gradient exists where `raw` has full rank.

    Computed in float64: the last bits of a QR vary with device, thread count and batching, and after rounding to
    float32 that is gone.  Hence an adapter that starts as the identity stays it when moved, batched or reloaded.
    """
    r, d = raw.shape[-2:]
    if r > d:
        raise ValueError(f"{r} rows cannot be orthonormal in width {d}: the rank r={r} must not exceed d={d}")
    result_dtype = torch.promote_types(raw.dtype, torch.float32)
    # Apple's GPUs have no float64.
    qr_dtype = torch.float32 if raw.device.type == "mps" else torch.float64
    with autocast_off(raw.device.type):
        q_DR, triangle_RR = torch.linalg.qr(raw.to(qr_dtype).mT, mode="reduced")
        diagonal_R = triangle_RR.diagonal(dim1=-2, dim2=-1)
        # Not torch.sign: it maps 0 to 0, which would delete the row.
        sign_R = torch.where(diagonal_R < 0, -1.0, 1.0).to(qr_dtype)
        return (q_DR * sign_R.unsqueeze(-2)).mT.to(result_dtype)
