"""The dial: an edit times a number, for an adapter, for a call, or for each row of a batch."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model

import reftune
from tests.models import tiny_model

LAST = 2


def adapted(**fields):
    torch.manual_seed(0)
    # behind the last block, logits of h + s·Δ are no function of anything else of s
    config = reftune.ReftConfig(init="random", task_type="CAUSAL_LM", **{"layers": "all", **fields})
    return get_peft_model(tiny_model("llama", layers=LAST + 1), config).eval()


IDS = torch.randint(1, 90, (3, 9), generator=torch.Generator().manual_seed(1))
FORMS = [{"positions": "f2+l2"}, {"positions": "all"}, {"positions": "prompt", "tie": "all"}]


@pytest.mark.parametrize("fields", FORMS, ids=lambda fields: fields["positions"])
@torch.no_grad()
def test_one_is_bit_equal_and_zero_is_the_base(fields) -> None:
    model = adapted(**fields)
    plain = model(IDS).logits
    with model.disable_adapter():
        base = model(IDS).logits
    assert not torch.equal(plain, base)
    assert torch.equal(model(IDS, strength=1).logits, plain)
    assert torch.equal(model(IDS, strength=[1.0, 1, 1]).logits, plain)
    assert torch.equal(model(IDS, strength=0).logits, base)
    rows = model(IDS, strength=[1, 0, 1]).logits
    assert torch.equal(rows[0], plain[0]) and torch.equal(rows[1], base[1])
    model.set_strength("default", 0.5)
    half = model(IDS).logits
    assert torch.equal(model(IDS, strength=2).logits, plain)
    model.set_strength("default", 1)
    assert torch.equal(model(IDS, strength=0.5).logits, half)
    assert torch.equal(model(IDS).logits, plain)


@torch.no_grad()
def test_the_edit_is_linear_in_the_strength_at_one_layer() -> None:
    model = adapted(layers=[LAST], positions="l3")
    hidden = {}
    block = model.get_base_model().model.layers[LAST]
    block.register_forward_hook(lambda module, args, output: hidden.__setitem__("h", output))
    states = {}
    for strength in (0.0, 1.0, 0.5, -1.0, 3.0):
        model(IDS, strength=strength)
        states[strength] = hidden["h"]
    delta = states[1.0] - states[0.0]
    assert delta[:, -3:].abs().min() > 0
    for strength, found in states.items():
        torch.testing.assert_close(found, states[0.0] + strength * delta, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_rows_of_one_batch_are_generated_as_each_alone() -> None:
    model = adapted(positions="f1+l2")
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    strengths = [0.0, 1.0, -2.0]
    together = model.generate(input_ids=IDS, strength=strengths, **options)
    for row, strength in enumerate(strengths):
        alone = model.generate(input_ids=IDS[row : row + 1], strength=strength, **options)
        assert torch.equal(together[row : row + 1], alone)
    beams = model.generate(input_ids=IDS, strength=strengths, num_beams=2, **options)
    alone = model.generate(input_ids=IDS[2:], strength=-2.0, num_beams=2, **options)
    assert torch.equal(beams[2:, : alone.shape[1]], alone)


@torch.no_grad()
def test_rows_with_adapters_of_their_own_have_strengths_of_their_own() -> None:
    model = adapted(positions="l1")
    torch.manual_seed(5)
    model.add_adapter("other", reftune.ReftConfig(init="random", positions="f2", task_type="CAUSAL_LM"))
    names = ["other", "__base__", "default"]
    found = model(IDS, adapter_names=names, strength=[2, 2, -1]).logits
    for row, name, strength in ((0, "other", 2), (2, "default", -1)):
        model.set_adapter(name)
        torch.testing.assert_close(found[row], model(IDS[row : row + 1], strength=strength).logits[0])
    model.set_strength("other", 0)
    model.delete_adapter("other")
    torch.manual_seed(5)
    model.add_adapter("other", reftune.ReftConfig(init="random", positions="f2", task_type="CAUSAL_LM"))
    assert torch.equal(model(IDS, adapter_names=names, strength=[2, 2, -1]).logits, found), "it outlived its adapter"


def test_what_is_no_strength_is_refused() -> None:
    model = adapted()
    for wrong in ("strong", [1, float("nan")], [], [[1.0]]):
        with pytest.raises(ValueError, match="strength"):
            model(IDS, strength=wrong)
    with pytest.raises(ValueError, match="strength has 2 entries for a batch of 3"):
        model(IDS, strength=[1, 2])
    with pytest.raises(ValueError, match="no adapter 'mine'; valid are 'default'"):
        model.set_strength("mine", 1)
