"""The orthonormal rows of all layers in one QR a call, bit for bit as one by one; and what edits keep for backward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import reftune.tuner.model as model_module
from reftune.interventions import orthonormal_rows
from tests.models import random_tokens, tiny_model
from tests.training.fast_models import adapted, gradients_of, ragged, trainer_of

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore:.*use_reentrant.*"),
]

DEPTH = 4
ALL_LAYERS: dict[str, Any] = {"depth": DEPTH, "layers": "all", "positions": "f1+l1"}
# widths and ranks of two kinds
TWO_SHAPES: dict[str, Any] = {
    "depth": DEPTH,
    "groups": [
        {"layers": [0, 1, 2], "positions": "l1", "r": 2},
        {"layers": [1, 3], "positions": "f1", "r": 3},
        {"layers": [2], "positions": "f1", "r": 3, "intervention": "direft"},
    ],
}


@pytest.fixture
def decompositions(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of all that was decomposed."""
    seen: list[tuple[int, ...]] = []
    real = torch.linalg.qr

    def counted(a: Tensor, mode: str = "reduced") -> Any:
        seen.append(tuple(a.shape))
        return real(a, mode=mode)

    monkeypatch.setattr(torch.linalg, "qr", counted)
    return seen


def labelled(batch: int = 3, length: int = 7) -> dict[str, Tensor]:
    ids = random_tokens(batch, length)
    return {"input_ids": ids, "labels": ids.masked_fill(torch.arange(length) < 4, -100)}


def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models made from now on have one QR a layer."""
    monkeypatch.setattr(model_module, "share_bases", lambda stack: None)


def loss_and_gradients(model: Any) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    loss = model(**labelled(), use_cache=False).loss
    loss.backward()
    return loss.detach(), gradients_of(model)


@pytest.mark.parametrize(
    ("fields", "shapes"),
    [
        (ALL_LAYERS, [(DEPTH, 32, 2)]),
        # a layer alone has nothing to be stacked with
        ({"layers": [1]}, [(32, 2)]),
        (TWO_SHAPES, [(2, 32, 3), (3, 32, 2)]),
        ({**ALL_LAYERS, "tie": "none"}, [(2 * DEPTH, 32, 2)]),
        ({**ALL_LAYERS, "component": "attention_head[1]"}, [(DEPTH, 8, 2)]),
    ],
)
def test_one_decomposition_a_shape(
    decompositions: list[tuple[int, ...]], fields: dict[str, Any], shapes: list[tuple[int, ...]]
) -> None:
    model = adapted(**fields).train()
    for _ in range(2):
        decompositions.clear()
        loss_and_gradients(model)
        assert sorted(decompositions) == shapes
    with torch.no_grad():
        decompositions.clear()
        model.eval()(**labelled())
    assert sorted(decompositions) == shapes


def test_an_adapter_that_is_off_costs_nothing(decompositions: list[tuple[int, ...]]) -> None:
    model = adapted(**ALL_LAYERS)
    decompositions.clear()
    with model.disable_adapter():
        model(**labelled())
    assert decompositions == []


@pytest.mark.parametrize("fields", [ALL_LAYERS, TWO_SHAPES, {**ALL_LAYERS, "tie": "none", "component": "mlp_output"}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bit_equal_to_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
    decompositions: list[tuple[int, ...]],
    fields: dict[str, Any],
    dtype: torch.dtype,
) -> None:
    def model() -> Any:
        return adapted(base=tiny_model("llama", layers=DEPTH, dtype=dtype), **fields).train()

    together = loss_and_gradients(model())
    one_by_one(monkeypatch)
    alone = model()
    decompositions.clear()
    expected = loss_and_gradients(alone)
    assert len(decompositions) > 2 and {len(shape) for shape in decompositions} == {2}
    assert torch.equal(together[0], expected[0])
    assert together[1].keys() == expected[1].keys()
    assert all(torch.equal(together[1][name], gradient) for name, gradient in expected[1].items())
    assert any(gradient.abs().sum() > 0 for gradient in expected[1].values())


def test_rows_of_a_stack_are_those_of_each() -> None:
    raw = torch.randn(5, 3, 16)
    for stacked, single in zip(orthonormal_rows(raw), raw, strict=True):
        assert torch.equal(stacked, orthonormal_rows(single))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("component", ["block_output", "mlp_output"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_gradient_checkpointing_has_the_same_gradients(reentrant: bool, component: str, kind: str) -> None:
    """An edit within a block is computed anew in the backward pass, one of its output is not."""
    model = adapted(kind, **ALL_LAYERS, component=component).train()
    loss, plain = loss_and_gradients(model)
    model.get_base_model().enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    again, checkpointed = loss_and_gradients(model)
    torch.testing.assert_close(again, loss, rtol=1e-6, atol=0.0)
    for name, gradient in plain.items():
        # float32, the same operations in the same order but for the stack of the decomposition
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-5, atol=1e-7)
    assert all(gradient.abs().sum() > 0 for name, gradient in plain.items() if ".0." in name)


# --- several calls ---------------------------------------------------------------------------------------------------


def test_decode_steps_share_and_generations_do_not(decompositions: list[tuple[int, ...]]) -> None:
    model = adapted(**{**ALL_LAYERS, "positions": "all"}).eval()
    ids = random_tokens(2, 5)
    decompositions.clear()
    before = model.generate(input_ids=ids, max_new_tokens=6, do_sample=False)
    assert decompositions == [(DEPTH, 32, 2)]
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(".R"):
                p.copy_(torch.randn_like(p))
            elif p.requires_grad:
                p.mul_(30)
    after = model.generate(input_ids=ids, max_new_tokens=6, do_sample=False)
    assert decompositions == [(DEPTH, 32, 2)] * 2
    by_hand = ids
    with torch.no_grad():
        for _ in range(6):
            logits = model(input_ids=by_hand, prompt_length=torch.tensor([5, 5])).logits[:, -1]
            by_hand = torch.cat([by_hand, logits.argmax(-1, keepdim=True)], 1)
    assert torch.equal(after, by_hand) and not torch.equal(after, before)


@pytest.mark.parametrize("reuse", ["auto", "off"])
def test_the_parts_of_a_batch_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decompositions: list[tuple[int, ...]], reuse: str
) -> None:
    """Rows of 3 and of 60 tokens are computed in two calls, whose edits come of one decomposition."""
    short, long = ragged(2, prompts=(3, 3)), ragged(2, seed=1, prompts=(60, 60))
    if reuse == "auto":
        # windows that differ as much
        long = [
            {**row, "labels": [-100] * 9 + row["input_ids"][9:], "prompt_length": 9}  # type: ignore[index]
            for row in long
        ]
    model = adapted(depth=DEPTH, layers=[1, 2, 3], positions="l1")
    trainer = trainer_of(tmp_path, model, short + long, max_steps=3, more={"reuse": reuse})
    calls: list[int] = []
    # PEFT 0.20 calls the base's `forward` by itself, without its hooks
    model.get_base_model().model.register_forward_pre_hook(lambda *args: calls.append(len(decompositions)))
    seen: list[tuple[int, int]] = []
    own = trainer.training_step

    def step(*args: Any, **kwargs: Any) -> Tensor:
        begin = len(calls), len(decompositions)
        loss = own(*args, **kwargs)
        seen.append((len(calls) - begin[0], len(decompositions) - begin[1]))
        return loss

    monkeypatch.setattr(trainer, "training_step", step)
    trainer.train()
    # the first step also looks at what can be done
    assert seen[1:] == [(2, 1), (2, 1)]


# --- memory ----------------------------------------------------------------------------------------------------------


@contextmanager
def kept_for_backward(numel: int) -> Iterator[set[int]]:
    """Addresses of all tensors of so many elements that the graph keeps."""
    found: set[int] = set()
    alive: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        if tensor.numel() == numel:
            found.add(tensor.untyped_storage().data_ptr())
            # an address is not given away again while its tensor lives
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield found


@pytest.mark.parametrize("fields", [{"positions": "f2+l2"}, {"positions": "l1", "component": "mlp_output"}])
@pytest.mark.parametrize("intervention", ["loreft", "noreft", "direft"])
def test_an_edited_block_keeps_no_more_states_than_a_frozen_one(fields: dict[str, Any], intervention: str) -> None:
    """Of the size of all its tokens; the first block is edited in any case, so that all others are in the graph."""
    batch, length = 3, 7
    counts = []
    for layers in ([0], [0, 1, 2, 3]):
        model = adapted(depth=DEPTH, layers=layers, intervention=intervention, **fields).train()
        with kept_for_backward(batch * length * 32) as found:
            loss = model(**labelled(batch, length), use_cache=False).loss
        loss.backward()
        counts.append(len(found))
    assert counts[0] > DEPTH
    assert counts[1] <= counts[0]


def test_a_whole_scope_keeps_the_states_that_its_gradient_needs() -> None:
    """So the count above can tell: of an edit of every token, the gradient of W needs every state."""
    counts = []
    for layers in ([0], [0, 1, 2, 3]):
        model = adapted(depth=DEPTH, layers=layers, positions="all").train()
        with kept_for_backward(3 * 7 * 32) as found:
            model(**labelled(), use_cache=False).loss.backward()
        counts.append(len(found))
    assert counts[1] > counts[0]
