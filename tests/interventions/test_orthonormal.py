"""Orthonormal rows: what QR with fixed signs promises."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from reftune.interventions import orthonormal_rows
from reftune.interventions.orthonormal import autocast_off

R, D = 4, 16


def raw(dtype: torch.dtype = torch.float64, *, seed: int = 0) -> Tensor:
    return torch.randn(R, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def gram_schmidt(rows: Tensor) -> Tensor:
    """The textbook procedure: the same function by another road."""
    done: list[Tensor] = []
    for row in rows:
        for earlier in done:
            row = row - (row @ earlier) * earlier
        done.append(row / row.norm())
    return torch.stack(done)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_rows_are_orthonormal_in_at_least_float32(dtype: torch.dtype) -> None:
    rows = orthonormal_rows(raw(dtype))
    assert rows.dtype == torch.promote_types(dtype, torch.float32)
    # Entries below 1 rounded to the result's dtype: the Gram matrix is off by at most about sqrt(D) roundings.
    tolerance = 4 * torch.finfo(rows.dtype).eps
    assert torch.allclose(rows @ rows.T, torch.eye(R, dtype=rows.dtype), rtol=0, atol=tolerance)


def test_equals_gram_schmidt_and_keeps_every_leading_span() -> None:
    rows = orthonormal_rows(raw())
    assert torch.allclose(rows, gram_schmidt(raw()), rtol=0, atol=1e-13)
    for k in range(1, R + 1):  # Gram-Schmidt keeps the span of the first k rows, for each k
        residual = raw()[:k] - raw()[:k] @ rows[:k].T @ rows[:k]
        assert residual.abs().max() < 1e-13


def test_rows_already_orthonormal_come_back() -> None:
    rows = gram_schmidt(raw())
    rows[1] *= -1  # whatever their signs
    assert torch.allclose(orthonormal_rows(rows), rows, rtol=0, atol=1e-14)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 7.0, 1e30])
def test_scale_is_without_effect(scale: float) -> None:
    x = raw(torch.float32)
    # One rounding of the scaled entries: relative 6e-8 each, times the condition number, which is below 10 here.
    assert torch.allclose(orthonormal_rows(x * scale), orthonormal_rows(x), rtol=0, atol=1e-6)


def test_gradient() -> None:
    assert torch.autograd.gradcheck(orthonormal_rows, (raw().requires_grad_(),))


def test_raw_is_left_alone_and_the_result_repeats() -> None:
    x = raw(torch.float32)
    before = x.clone()
    assert torch.equal(orthonormal_rows(x), orthonormal_rows(x))
    assert torch.equal(x, before)


def test_a_batch_equals_one_by_one_bit_for_bit() -> None:
    batch = torch.stack([raw(torch.float32, seed=seed) for seed in range(5)])
    assert torch.equal(orthonormal_rows(batch), torch.stack([orthonormal_rows(x) for x in batch]))


def test_float32_bits_do_not_depend_on_the_algorithm() -> None:
    """So they should not on the device either: an identity made on one holds on the other."""
    x = orthonormal_rows(torch.randn(8, 512, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(orthonormal_rows(x), gram_schmidt(x.double()).float())


def test_zeros_do_not_become_nan() -> None:
    rows = orthonormal_rows(torch.zeros(R, D))
    assert torch.equal(rows @ rows.T, torch.eye(R))


def test_autocast_changes_nothing() -> None:
    x = raw(torch.float32)
    expected = orthonormal_rows(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(orthonormal_rows(x), expected)


def test_autocast_off_on_a_device_without_autocast() -> None:
    with autocast_off("meta"):
        assert orthonormal_rows(torch.empty(R, D, device="meta")).shape == (R, D)


def test_more_rows_than_width_is_refused() -> None:
    with pytest.raises(ValueError, match="r=5 must not exceed d=4"):
        orthonormal_rows(torch.zeros(5, 4))
