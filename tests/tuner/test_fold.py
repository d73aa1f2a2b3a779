"""Edits of a call without gradients, folded: as unfolded ones, never stale, and left alone where they must be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor

import reftune.tuner.bases as bases_module
import reftune.tuner.fold as fold_module
from reftune import ReftConfig
from reftune.interventions import Direft, InterventionOptions, Loreft
from reftune.tuner import ReftLayer
from tests.models import tiny_model
from tests.training.fast_models import adapted

DEPTH = 3
BASE = "__base__"
IDS = torch.randint(1, 90, (4, 11), generator=torch.Generator().manual_seed(1))
# the third row's prompt is shorter than the slots
MASK = (torch.arange(11) >= torch.tensor([0, 3, 9, 1])[:, None]).long()


@contextmanager
def unfolded() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bases_module, "fold", lambda *args: {})
        yield


@pytest.fixture
def edits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sites that were folded, by call."""
    seen: list[int] = []
    real = fold_module.fold

    def counted(*args: Any) -> Any:
        found = real(*args)
        seen.append(len(found))
        return found

    monkeypatch.setattr(bases_module, "fold", counted)
    return seen


@torch.no_grad()
def logits(model: Any, **more: Any) -> Tensor:
    return model(input_ids=IDS, attention_mask=MASK, **more).logits


def both(model: Any, **more: Any) -> tuple[Tensor, Tensor]:
    found = logits(model, **more)
    with unfolded():
        return found, logits(model, **more)


FIELDS: list[dict[str, Any]] = [
    {"positions": "f2+l3"},
    {"positions": "l1", "form": "delta", "alpha": 3.0},
    {"positions": "f1+l2", "tie": "group", "intervention": "noreft"},
    {"positions": "f2+l2", "tie": "none", "intervention": "direft_orthonormal"},
    {"positions": "f2", "intervention": "direft", "component": "attention_head[1]"},
    {"positions": "l2", "component": "mlp_output"},
]


@pytest.mark.parametrize("fields", FIELDS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_as_unfolded(edits: list[int], fields: dict[str, Any], dtype: torch.dtype) -> None:
    model = adapted(base=tiny_model("llama", layers=DEPTH, dtype=dtype), **{"layers": "all", **fields}).eval()
    for strength in (None, [1.0, -0.5, 2, 0]):
        found, plain = both(model, **({} if strength is None else {"strength": strength}))
        torch.testing.assert_close(found, plain)
        assert not torch.equal(found, logits(model, strength=0))
    assert set(edits) == {DEPTH}


def several() -> PeftModel:
    """Adapters of other ranks, positions and layers."""
    model = adapted(depth=DEPTH, layers="all", positions="f1+l2", tie="group")
    for name, fields in (
        ("wide", {"r": 5, "positions": "f4"}),
        ("last", {"layers": [2], "positions": "l1", "intervention": "direft"}),
        ("red", {"layers": [1], "positions": "l1", "intervention": "red"}),
    ):
        model.add_adapter(name, ReftConfig(task_type="CAUSAL_LM", init="random", **{"layers": "all", **fields}))
    return model.eval()


def test_mixed_batches(edits: list[int]) -> None:
    model = several()
    model.set_adapter("default")
    names = ["default", "wide", BASE, "last"]
    found, plain = both(model, adapter_names=names, strength=[1, 2, 3, -1])
    torch.testing.assert_close(found, plain)
    assert edits[-1] == DEPTH
    # a Φ that is no low-rank map, at one site
    found, plain = both(model, adapter_names=["red", "wide", "last", "wide"])
    torch.testing.assert_close(found, plain)
    assert edits[-1] == DEPTH - 1
    arguments = {"input_ids": IDS, "attention_mask": MASK, "max_new_tokens": 4, "do_sample": False, "num_beams": 2}
    folded = model.generate(**arguments, adapter_names=names)
    assert edits[-1] == DEPTH
    with unfolded():
        assert torch.equal(folded, model.generate(**arguments, adapter_names=names))


def test_a_map_that_edits_nothing_beside_one_in_two_chunks() -> None:
    model = adapted(depth=DEPTH, layers="all", positions="f1+l1", tie="group")
    wide = ReftConfig(task_type="CAUSAL_LM", init="random", layers="all", positions="f9", r=4)
    model.add_adapter("wide", wide)
    # a prompt of one token has no first beside the last, and nine tokens are a chunk of eight and one of one
    one = (torch.arange(11) >= 10).long()
    arguments = {"input_ids": IDS[:2], "attention_mask": torch.stack([one, torch.ones_like(one)])}
    with torch.no_grad():
        found = model.eval()(**arguments, adapter_names=["default", "wide"]).logits
        with unfolded():
            plain = model(**arguments, adapter_names=["default", "wide"]).logits
    torch.testing.assert_close(found, plain)


SCOPES: dict[str, dict[str, Any]] = {
    "prompt": {"positions": "prompt"},
    "all": {"positions": "all"},
    "response": {"positions": "response", "layers": [0, 2]},
    "terms": {"positions": "p[1:3]+g3-id(4,5,6,7)", "tie": "none"},
}


@pytest.mark.parametrize("others", [{}, {"form": "delta", "alpha": 2.0}, {"intervention": "red"}], ids=str)
def test_scopes_and_terms_of_mixed_batches(edits: list[int], others: dict[str, Any]) -> None:
    """Also of a Φ that is not folded, which takes its rows alone."""
    model = adapted(depth=DEPTH, layers="all", positions="f1+l2")
    for name, fields in SCOPES.items():
        own: dict[str, Any] = {"layers": "all", "init": "random", **fields, **others}
        model.add_adapter(name, ReftConfig(task_type="CAUSAL_LM", **own))
    model.eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith((".s", ".b")) and "intervention_" in name:
                parameter.add_(torch.randn_like(parameter))
    for names in (["prompt", "default", BASE, "all"], ["response", "terms", "prompt", "prompt"]):
        given = {"adapter_names": names, "strength": [1, 0.5, 1, -1], "prompt_length": [5, 8, 2, 10]}
        found, plain = both(model, **given)
        torch.testing.assert_close(found, plain)
        assert edits[-1] == (DEPTH if "intervention" not in others else 0)
        for row, name in enumerate(names):
            model.set_adapter(name if name != BASE else "default")
            alone = {name: [value[row]] for name, value in given.items() if name != "adapter_names"}
            arguments = {"input_ids": IDS[row : row + 1], "attention_mask": MASK[row : row + 1], **alone}
            with torch.no_grad(), unfolded(), model.disable_adapter() if name == BASE else nullcontext():
                wanted = model(**arguments).logits
            kept = MASK[row].bool()
            torch.testing.assert_close(found[row, kept], wanted[0, kept])
        # g3 ends before the answers do
        arguments = {"input_ids": IDS, "attention_mask": MASK, "max_new_tokens": 6, "do_sample": False}
        arguments |= {"num_beams": 2, "output_scores": True, "return_dict_in_generate": True}
        folded = model.generate(**arguments, adapter_names=names)
        with unfolded():
            wanted = model.generate(**arguments, adapter_names=names)
        assert torch.equal(folded.sequences, wanted.sequences)
        torch.testing.assert_close(folded.scores, wanted.scores)


def test_what_is_switched_between_two_steps_is_seen(edits: list[int]) -> None:
    """By a logits processor, which is called in the midst of a generation."""
    model = adapted(depth=DEPTH, layers="all", positions="all").eval()
    steps: list[int] = []

    def switch(ids: Tensor, scores: Tensor) -> Tensor:
        steps.append(ids.shape[1])
        model.set_strength("default", 3.0 if len(steps) % 2 else -1.0)
        return scores

    def scores() -> Any:
        steps.clear()
        model.set_strength("default", 1.0)
        arguments = {"max_new_tokens": 5, "do_sample": False, "output_scores": True, "return_dict_in_generate": True}
        return model.generate(
            input_ids=IDS, attention_mask=MASK, adapter_names=["default"] * 4, logits_processor=[switch], **arguments
        ).scores

    found = scores()
    assert edits[-1] == DEPTH
    with unfolded():
        torch.testing.assert_close(found, scores())


@pytest.mark.parametrize("name", ["R", "W", "b"])
def test_no_map_is_stale(name: str) -> None:
    model = adapted(depth=DEPTH, layers="all", positions="f1+l1").eval()
    before = logits(model)
    for module in model.modules():
        if isinstance(module, Loreft):
            # the version of the parameter does not change
            module.get_parameter(name).data.copy_(torch.randn_like(module.get_parameter(name)))
    found, plain = both(model)
    torch.testing.assert_close(found, plain)
    assert not torch.allclose(found, before)


def test_gradients_hooks_and_patches_are_not_folded_away(edits: list[int]) -> None:
    model = adapted(depth=DEPTH, layers="all", positions="f1+l1").eval()
    layers = [module for module in model.modules() if isinstance(module, ReftLayer)]
    model(input_ids=IDS, labels=IDS.masked_fill(torch.arange(11) < 5, -100)).loss.backward()
    assert edits == [0] and all(p.grad is not None for p in layers[0].parameters())
    phi = layers[1].phi("default", layers[1].units("default")[0])

    def nothing(module: Any, args: Any, delta: Any) -> Tensor:
        return torch.zeros_like(delta)

    handle = phi.register_forward_hook(nothing)
    without = logits(model)
    handle.remove()
    assert edits[-1] == DEPTH - 1 and not torch.allclose(without, logits(model))
    vars(phi)["forward"] = lambda h, *rest: torch.zeros_like(h)
    torch.testing.assert_close(logits(model), without)


def test_a_formula_of_its_own_is_not_taken_for_that_of_its_parent() -> None:
    class Twice(Direft):
        def coefficients(self, h: Tensor, basis: Tensor) -> Tensor:
            return 2 * super().coefficients(h, basis)

    basis = torch.randn(4, 8)
    assert Direft(8, InterventionOptions()).linear(basis) is not None
    assert Twice(8, InterventionOptions()).linear(basis) is None
