"""The edit as a Triton kernel: one program a token, which returns at once where nothing is edited.

Nothing in it depends on the host, so that it can be captured in a graph.

Must not know: how tokens get their slots.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

__all__ = ["edit_tokens"]

# Of A or B each thread of a program holds so many numbers at a time: more would not fit into its registers.
WARPS, PER_THREAD = 8, 32
# numbers of a row that a warp reads at once, in whole lines of memory
SHORTEST = 32


@triton.jit
def _edit(  # pragma: no cover — Triton reads its text
    hidden, residual, token_slot, table, width, hidden_stride, residual_stride, slot_stride,
    RANK: tl.constexpr, SUM: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0)
    slot = tl.load(token_slot + token)
    if slot < 0:
        return
    here = table + slot.to(tl.int64) * slot_stride
    h_row = hidden + token.to(tl.int64) * hidden_stride
    r_row = residual + token.to(tl.int64) * residual_stride
    ranks = tl.arange(0, ROWS)
    z = tl.zeros((ROWS,), dtype=tl.float32)
    for start in range(0, width, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < width
        h = tl.load(h_row + at, mask=inside, other=0.0)
        if SUM:
            h = h + tl.load(r_row + at, mask=inside, other=0.0)
        a = tl.load(here + ranks[:, None] * width + at[None], mask=(ranks < RANK)[:, None] & inside[None], other=0.0)
        z += tl.sum(a * h.to(tl.float32)[None], axis=1)
    for start in range(0, width, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < width
        h = tl.load(h_row + at, mask=inside, other=0.0)
        if SUM:
            h = h + tl.load(r_row + at, mask=inside, other=0.0)
        h32 = h.to(tl.float32)
        b = tl.load(
            here + (RANK + ranks[:, None]) * width + at[None], mask=(ranks < RANK)[:, None] & inside[None], other=0.0
        )
        g = tl.load(here + 2 * RANK * width + at, mask=inside, other=0.0)
        v = tl.load(here + (2 * RANK + 1) * width + at, mask=inside, other=0.0)
        new = h32 + tl.sum(b * z[:, None], axis=0) + g * h32 + v
        if SUM:
            tl.store(r_row + at, new.to(h.dtype), mask=inside)
            tl.store(h_row + at, tl.zeros((BLOCK,), dtype=h.dtype), mask=inside)
        else:
            tl.store(h_row + at, new.to(h.dtype), mask=inside)


def tile(rank: int, width: int) -> dict[str, int]:
    """How much of A and B a program has at hand: BLOCK columns of all ROWS."""
    rows = triton.next_power_of_2(max(rank, 1))
    block = max(SHORTEST, 32 * WARPS * PER_THREAD // rows)
    return {"BLOCK": min(block, triton.next_power_of_2(width)), "ROWS": rows, "num_warps": WARPS}


def edit_tokens(hidden: Tensor, residual: Tensor | None, token_slot: Tensor, table: Tensor, rank: int) -> None:
    """hidden, residual [T, d] in place, as `edits.edit_rows`; table [slots, 2r + 2, d] is that of one layer."""
    flat = hidden.view(-1, hidden.shape[-1])
    other = flat if residual is None else residual.view(-1, residual.shape[-1])
    constants: dict[str, Any] = {
        "RANK": rank,
        "SUM": residual is not None,
        **tile(rank, flat.shape[1]),
    }
    launch: Any = _edit
    launch[(flat.shape[0],)](
        flat, other, token_slot, table, flat.shape[1], flat.stride(0), other.stride(0), table.stride(0), **constants
    )
