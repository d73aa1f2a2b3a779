"""Steering vectors from pairs of prompts: the direction that is there is found, at its layer, and added."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from reftune.errors import ReftuneError
from reftune.interop.steer import DIRECTIONS, HELD_BACK, LENGTHS, directions_of, steer
from reftune.models import load_adapter
from tests.training.text_models import save_base


def test_each_kind_finds_a_direction_that_is_there() -> None:
    draw = torch.Generator().manual_seed(0)
    v = torch.nn.functional.normalize(torch.randn(24, generator=draw, dtype=torch.float64), dim=0)
    shared = torch.randn(200, 24, generator=draw, dtype=torch.float64)
    positive = shared + 1.5 * v + 0.1 * torch.randn(200, 24, generator=draw, dtype=torch.float64)
    negative = shared - 1.5 * v + 0.1 * torch.randn(200, 24, generator=draw, dtype=torch.float64)
    for found in directions_of(positive, negative, 3, list(DIRECTIONS)):
        assert found.v @ v > 0.9, found.kind
        assert found.v.norm() == pytest.approx(1) and found.apart > 0.85
        assert found.distance == pytest.approx(3, rel=0.15)
    nothing = directions_of(shared, shared.roll(1, 0), 0, ["difference"])
    assert nothing[0].apart < 0.7


def test_an_adapter_that_adds_the_direction(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    pairs = [(f"w{i} w{i + 3} w1 w2", f"w{i} w{i + 3} w50 w51") for i in range(16)]
    positive, negative = ([pair[side] for pair in pairs] for side in (0, 1))
    made = steer(str(base), tmp_path / "made", positive=positive, negative=negative)
    one, part = made.best.direction, made.best.part
    assert len(made.found) == 2 * len(DIRECTIONS) and made.found[0].apart == 1
    # each of both layers in each length, and the best of these is what was saved
    assert len(made.trials) == 2 * len(DIRECTIONS) * len(LENGTHS)
    assert made.best.divergence == min(t.divergence for t in made.trials)
    model: Any
    model, tokenizer = load_adapter(made.folder)
    ids = tokenizer("w9 w8 w7", return_tensors="pt").input_ids
    states = {}
    block = model.get_base_model().model.layers[one.layer]
    block.register_forward_hook(lambda module, args, output: states.setdefault(len(states), output))
    with torch.no_grad():
        model(ids)
        model(ids, strength=0)
    added = (states[0] - states[1])[0].double()
    torch.testing.assert_close(added, (part * one.distance * one.v).expand_as(added), atol=1e-4, rtol=1e-4)
    # what was told of it, from the saved adapter: the next token behind held-back prompts
    held = slice(HELD_BACK - 1, None, HELD_BACK)
    kl = []
    for wanted, given in zip(positive[held], negative[held], strict=True):
        with torch.no_grad():
            p = model(tokenizer(wanted, return_tensors="pt").input_ids, strength=0).logits[0, -1].log_softmax(-1)
            q = model(tokenizer(given, return_tensors="pt").input_ids).logits[0, -1].log_softmax(-1)
        kl.append(float((p.exp() * (p - q)).sum()))
    assert made.best.divergence == pytest.approx(sum(kl) / len(kl), rel=1e-3) and made.best.divergence < made.without
    with pytest.raises(ReftuneError, match="are no pairs"):
        steer(str(base), tmp_path / "no", positive=positive, negative=negative[:9])
    with pytest.raises(ReftuneError, match="are the same"):
        steer(str(base), tmp_path / "no", positive=positive, negative=positive)
    with pytest.raises(ReftuneError, match="no kind of direction"):
        steer(str(base), tmp_path / "no", positive=positive, negative=negative, kinds=["mean"])
