"""The Triton kernel in Triton's interpreter, against the plain op; and the bank whose slots it reads."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.serving.vllm.engines import needs_interpreter, prepare

pytestmark = [pytest.mark.vllm, needs_interpreter]
prepare()


def maps(width: int, rank: int, generator: torch.Generator, *, kind: str) -> Any:
    from reftune.serving.folded import Affine

    A, B = (torch.randn(rank, width, generator=generator) / width**0.5 for _ in range(2))
    g, v = (torch.randn(width, generator=generator) for _ in range(2))
    return {"low rank": Affine(A, B, None, v), "red": Affine(None, None, g, v), "all": Affine(A, B, g, v)}[kind]


@pytest.mark.parametrize("kind", ["low rank", "red", "all"])
@pytest.mark.parametrize("width", [64, 576, 2100])
@pytest.mark.parametrize("rank", [1, 3, 8])
@pytest.mark.parametrize("summed", [True, False])
def test_kernel_equals_the_plain_op(kind: str, width: int, rank: int, summed: bool) -> None:
    from reftune.serving.vllm.bank import Bank
    from reftune.serving.vllm.edits import edit_rows

    generator = torch.Generator().manual_seed(width + rank)
    bank = Bank(slots=3, layers=(0, 5), rank=8, width=width, tokens=16, device=torch.device("cpu"))
    one, other = maps(width, rank, generator, kind=kind), maps(width, 2, generator, kind="all")
    content = {("a", ()): {5: one}, ("b", ()): {0: other}}
    bank.assign({("a", ()): [(1, 3), (9, 10)], ("b", ()): [(4, 6)]}, content.__getitem__)
    hidden, residual = (torch.randn(12, width, generator=generator) for _ in range(2))
    wanted = [hidden.clone(), residual.clone()]
    edit_rows(wanted[0], wanted[1] if summed else None, torch.tensor([1, 2, 9]), one)
    found = [hidden.clone(), residual.clone()]
    bank.apply(found[0], found[1] if summed else None, 5)
    # the output of the block
    outputs = [pair[0] + pair[1] if summed else pair[0] for pair in (found, wanted)]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=2e-5, atol=2e-4)
    if summed:
        assert not found[0][[1, 2, 9]].any()
    # that of an adapter which has nothing at this layer is what it was; tokens without an edit are untouched
    assert torch.equal(outputs[0][4:6], outputs[1][4:6])
    rest = [i for i in range(12) if i not in (1, 2, 9, 4, 5)]
    assert torch.equal(found[0][rest], hidden[rest]) and torch.equal(found[1][rest], residual[rest])


def test_slots_go_to_those_who_need_them() -> None:
    from reftune.serving.vllm.bank import Bank

    generator = torch.Generator().manual_seed(0)
    bank = Bank(slots=2, layers=(0,), rank=2, width=8, tokens=8, device=torch.device("cpu"))
    content = {(name, ()): {0: maps(8, 2, generator, kind="all")} for name in "abc"}

    def slots(*names: str) -> list[int]:
        bank.assign({(name, ()): [(i, i + 1)] for i, name in enumerate(names)}, content.__getitem__)
        for i, name in enumerate(names):
            assert torch.equal(bank.table[bank.token_slot[i]], bank.packed(content[name, ()]))
        return bank.token_slot[: len(names)].tolist()

    first = slots("a", "b")
    assert slots("b", "a") == first[::-1]
    # the longest unused goes
    assert slots("b") == [first[1]]
    assert slots("c") == [first[0]]
    assert slots("b", "c") == [first[1], first[0]]
    bank.forget("c")
    assert slots("a", "b") == first
    assert bank.token_slot.tolist() == [*first, -1, -1, -1, -1, -1, -1]
