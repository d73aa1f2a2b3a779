"""PEFT's own ways of handling adapters: add, activate, disable, delete, mix, unload, and what cannot be."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from reftune import ReftLayer, ReftModel
from tests.models import tiny_model
from tests.tuner.adapters import LAYERS, adapted, config, inputs, logits, train_a_little

LENGTH = 3
GENERATE = {"max_new_tokens": LENGTH, "do_sample": False}


def base_logits(kind: str = "llama") -> torch.Tensor:
    return logits(tiny_model(kind, layers=LAYERS), inputs(kind))


def two(first: dict[str, Any], second: dict[str, Any], kind: str = "llama") -> Any:
    """A model with the adapters `one`, which is active, and `two`."""
    model = adapted(kind, name="one", **first)
    model.add_adapter("two", config(kind, **second))
    return model


# One adapter ----------------------------------------------------------------------------------


def test_it_is_a_peft_model() -> None:
    model = adapted()
    assert isinstance(model, peft.PeftModelForCausalLM)
    assert isinstance(model.base_model, ReftModel)
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    assert len(layers) == LAYERS
    assert all(isinstance(layer, ReftLayer) and layer.in_features == layer.out_features == 32 for layer in layers)
    assert model.get_model_status().enabled is True
    assert model.get_model_status().num_adapter_layers == LAYERS


def test_only_interventions_are_trained() -> None:
    model = adapted()
    assert {name.split(".")[-1] for name, p in model.named_parameters() if p.requires_grad} == set("RWb")
    trained, everything = model.get_nb_trainable_parameters()
    # R and W of 2 × 32 and b of 2, in each layer
    assert trained == LAYERS * (2 * 2 * 32 + 2) < everything
    before = {name: p.clone() for name, p in model.named_parameters()}
    train_a_little(model, steps=1)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if "intervention_" in name}


def test_disabled_and_enabled() -> None:
    model = adapted()
    before = logits(model)
    with model.disable_adapter():
        assert torch.equal(logits(model), base_logits())
        with pytest.raises(RuntimeError, match="of the user"), model.disable_adapter():
            raise RuntimeError("of the user")
    assert torch.equal(logits(model), before)


def test_unload_gives_the_base_model_back() -> None:
    fresh = tiny_model("llama", layers=LAYERS)
    model = adapted(
        component="attention_output", groups=[{"layers": 0}, {"layers": 1, "component": "attention_head[1]"}]
    )
    back = model.unload()
    assert type(back) is type(fresh)
    assert back.state_dict().keys() == fresh.state_dict().keys()
    assert [name for name, _ in back.named_modules()] == [name for name, _ in fresh.named_modules()]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in back.modules())
    assert "generate" not in vars(back)
    assert torch.equal(logits(back), base_logits())
    assert torch.equal(back.generate(**inputs(), **GENERATE), fresh.generate(**inputs(), **GENERATE))
    again = peft.get_peft_model(back, config(init="identity")).eval()
    assert torch.equal(logits(again), base_logits())


@pytest.mark.parametrize("call", ["merge_and_unload", "merge_adapter", "unmerge_adapter"])
def test_merging_is_refused_with_the_reason(call: str) -> None:
    model = adapted()
    before = logits(model)
    with pytest.raises(NotImplementedError, match="hidden states"):
        getattr(model, call)()
    assert torch.equal(logits(model), before)


# Several adapters ----------------------------------------------------------------------------------


def test_adapters_are_switched() -> None:
    model = two({"positions": "f1+l1"}, {"positions": "l2", "layers": [1]})
    first = logits(model)
    model.set_adapter("two")
    second = logits(model)
    assert not torch.equal(first, second)
    assert {name.split(".")[-2] for name, p in model.named_parameters() if p.requires_grad} == {"two"}
    model.set_adapter("one")
    assert torch.equal(logits(model), first)
    model.delete_adapter("two")
    assert torch.equal(logits(model), first)
    assert not any(".two." in name for name, _ in model.named_parameters())


def test_disjoint_adapters_are_active_together() -> None:
    prefix, suffix = {"positions": "f1"}, {"positions": "l1"}
    model = two(prefix, suffix)
    model.base_model.set_adapter(["one", "two"])
    together = adapted(groups=[prefix, suffix])
    source = {name: p for name, p in model.named_parameters() if "intervention_" in name}
    with torch.no_grad():
        for name, p in together.named_parameters():
            if "intervention_" in name:
                # the second group's Φ is number 1 there, and the second adapter's number 0 here
                other = name.replace("intervention_0.default", "intervention_0.one")
                p.copy_(source[other.replace("intervention_1.default", "intervention_0.two")])
    assert torch.equal(logits(model), logits(together))
    assert all(p.requires_grad for p in source.values())
    model.delete_adapter("two")
    assert model.active_adapters == ["one"]


def test_parts_of_one_rank_are_active_together() -> None:
    parts = {"subspaces": [[0], [1]], "positions": "all"}
    model = two({**parts, "active_subspaces": [0]}, {**parts, "active_subspaces": [1]})
    alone = logits(model)
    model.base_model.set_adapter(["one", "two"])
    assert not torch.equal(logits(model), alone)


@pytest.mark.parametrize(
    "first, second",
    [
        ({"positions": "f2"}, {"positions": "f1"}),
        ({"positions": "all"}, {"positions": "l1"}),
        ({"positions": "prompt", "layers": [1]}, {"positions": "f1+l1"}),
    ],
)
def test_overlapping_adapters_are_warned_of_and_refused_by_the_call(
    first: dict[str, Any], second: dict[str, Any]
) -> None:
    model = two(first, second)
    before = logits(model)
    problem = r"'one' and 'two' both edit layer . at overlapping positions"
    with pytest.warns(UserWarning, match=problem):
        model.base_model.set_adapter(["one", "two"])
    assert model.active_adapters == ["one", "two"]
    with pytest.raises(ValueError, match=problem):
        logits(model)
    with model.disable_adapter():
        logits(model)
    model.set_adapter("one")
    assert torch.equal(logits(model), before)


def test_an_adapter_that_cannot_be_added_leaves_the_others_as_they_were() -> None:
    model = adapted(name="one", positions="f1+l1")
    before, names = logits(model), [name for name, _ in model.named_modules()]
    # its first group fits every layer; its second none
    wrong = config(groups=[{"positions": "f1"}, {"positions": "l1", "r": 99}])
    with pytest.raises(ValueError, match="r=99"):
        model.add_adapter("two", wrong)
    assert [name for name, _ in model.named_modules()] == names
    assert list(model.peft_config) == ["one"]
    assert torch.equal(logits(model), before)


def test_deleting_an_adapter_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="nobody"):
        adapted().delete_adapter("nobody")


# Several adapters in one batch ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
@pytest.mark.parametrize("positions", ["f1+l2", "all", "prompt"])
def test_rows_with_adapters_of_their_own(kind: str, positions: str) -> None:
    model = two({"positions": positions}, {"positions": "l1", "component": "mlp_output"}, kind)
    given, names = inputs(kind), ["two", "__base__", "one"]
    alone = {"__base__": base_logits(kind)}
    texts = {"__base__": tiny_model(kind, layers=LAYERS).generate(**given, **GENERATE, num_beams=2)}
    for name in ("one", "two"):
        model.set_adapter(name)
        alone[name] = logits(model, given)
        texts[name] = model.generate(**given, **GENERATE, num_beams=2)
    mixed = logits(model, given, adapter_names=names)
    for row, name in enumerate(names):
        torch.testing.assert_close(mixed[row], alone[name][row], rtol=1e-5, atol=1e-5)
    text = model.generate(**given, **GENERATE, num_beams=2, adapter_names=names)
    assert torch.equal(text, torch.stack([texts[name][row] for row, name in enumerate(names)]))


@pytest.mark.parametrize("names, message", [(["one"], "got 1 and 3"), (["one", "who", "one"], "who")])
def test_adapter_names_that_do_not_fit(names: list[str], message: str) -> None:
    model = adapted(name="one")
    with pytest.raises(ValueError, match=message):
        logits(model, adapter_names=names)
    with pytest.raises(ValueError, match="training mode"):
        logits(model.train(), adapter_names=["one"] * 3)


def test_classifiers_of_adapters_in_one_batch() -> None:
    model = two({"positions": "f1"}, {"positions": "l1"}, "bert")
    heads = [m for m in model.modules() if isinstance(m, peft.utils.ModulesToSaveWrapper)]
    assert heads
    with torch.no_grad():
        for head in heads:
            for i, copy in enumerate(head.modules_to_save.values()):
                nn.init.constant_(copy.bias, i + 1.0)
    given, names = inputs("bert"), ["two", "one", "two"]
    alone = {}
    for name in ("one", "two"):
        model.set_adapter(name)
        alone[name] = logits(model, given)
    mixed = logits(model, given, adapter_names=names)
    for row, name in enumerate(names):
        torch.testing.assert_close(mixed[row], alone[name][row], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(alone["one"], alone["two"], atol=0.1)
