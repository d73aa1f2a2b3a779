"""Adapters made into one: the edits of both, exactly; what collides is refused by name."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model

import reftune
from tests.models import HIDDEN, tiny_model

IDS = torch.randint(1, 90, (2, 9), generator=torch.Generator().manual_seed(1))
LAST = 2


def model_of(one, two):
    """Two adapters at the last layer of a tiny model, so that logits are read from h + Δ alone."""
    torch.manual_seed(0)
    common = {"init": "random", "task_type": "CAUSAL_LM", "layers": [LAST], "r": 2}
    model = get_peft_model(tiny_model("llama", layers=LAST + 1), reftune.ReftConfig(**{**common, **one}))
    model.add_adapter("other", reftune.ReftConfig(**{**common, **two}))
    return model.eval()


@torch.no_grad()
def state(model, *names: str) -> torch.Tensor:
    """What the last block returns with an adapter, or without any."""
    found = {}
    block = model.get_base_model().model.layers[LAST]
    hook = block.register_forward_hook(lambda module, args, output: found.__setitem__("h", output.double()))
    if names:
        model.set_adapter(names[0])
        model(IDS)
    else:
        with model.disable_adapter():
            model(IDS)
    hook.remove()
    return found["h"]


KINDS = ["loreft", "direft", "noreft", "consreft", "lobireft", "direft_orthonormal", "steer"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_sum_is_exact(kind: str) -> None:
    model = model_of({"positions": "f2+l2", "intervention": kind}, {"positions": "f2+l2", "alpha": 3.0})
    base, one, two = state(model), state(model, "default"), state(model, "other")
    model.add_weighted_adapter(["default", "other"], [1, -0.5], "both")
    wanted = base + (one - base) - 0.5 * (two - base)
    torch.testing.assert_close(state(model, "both"), wanted, atol=1e-4, rtol=1e-4)
    assert (one - base).abs().max() > 0.01


def test_activations_and_active_rows_are_kept() -> None:
    parts = {"subspaces": [[0], [1, 2]], "active_subspaces": [1], "r": 3}
    common = {"intervention": "direft", "act_fn": "gelu"}
    model = model_of(common, {**common, **parts})
    base, one, two = state(model), state(model, "default"), state(model, "other")
    model.add_weighted_adapter(["default", "other"], [1, 1], "both", combination_type="cat")
    torch.testing.assert_close(state(model, "both"), one + two - base, atol=1e-4, rtol=1e-4)
    assert model.peft_config["both"].r == 4


def test_disjoint_positions_keep_each_as_it_is() -> None:
    model = model_of({"positions": "f2"}, {"positions": "l2", "intervention": "red", "tie": "none"})
    base, one, two = state(model), state(model, "default"), state(model, "other")
    model.add_weighted_adapter(["default", "other"], [1, 1], "both", combination_type="disjoint")
    torch.testing.assert_close(state(model, "both"), one + two - base, atol=1e-5, rtol=1e-5)
    kinds = [group.intervention for group in model.peft_config["both"].resolved_groups()]
    assert sorted(kinds) == ["loreft", "red"]


def test_orthogonalized_edits_leave_each_other_alone() -> None:
    model = model_of({"positions": "l1"}, {"positions": "l1"})
    base, one, two = state(model), state(model, "default"), state(model, "other")
    model.add_weighted_adapter(["default", "other"], [1, 1], "both", combination_type="orthogonalize")
    left = state(model, "both") - one
    # what the second adds lies beside what the first writes into, and is the second's edit there
    layer = next(m for m in model.modules() if isinstance(m, reftune.tuner.ReftLayer))
    phi = layer.phi("default", layer.units("default")[0])
    R = phi.basis().double()
    assert (left[:, -1] @ R.mT).abs().max() < 1e-4
    wanted = (two - base)[:, -1]
    torch.testing.assert_close(left[:, -1], wanted - wanted @ R.mT @ R, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("one", "two", "mode", "told"),
    [
        ({"positions": "f2"}, {"positions": "f1+l1"}, "sum", "overlapping positions"),
        ({"positions": "f2"}, {"positions": "f2"}, "disjoint", "both edit 'f2'"),
        ({}, {"intervention": "red"}, "sum", "'other' cannot be combined there: red has no rank"),
        ({}, {"rms": True}, "sum", "rms=True"),
        ({"r": HIDDEN}, {}, "sum", "more than the width"),
        ({"intervention": "direft", "act_fn": "gelu"}, {}, "sum", "activations"),
        ({"act_fn": "gelu"}, {}, "sum", "no sum of activations"),
        ({}, {}, "svd", "'svd' is no way"),
    ],
)
def test_what_collides_is_refused_by_name(one, two, mode: str, told: str) -> None:
    model = model_of(one, two)
    with pytest.raises(ValueError, match=told):
        model.add_weighted_adapter(["default", "other"], [1, 1], "both", combination_type=mode)
    assert "both" not in model.peft_config
    with pytest.raises(ValueError, match="different ones of default, other"):
        model.add_weighted_adapter(["default", "mine"], [1, 1], "both")
