"""ReFT with what else there is: a LoRA below it, classifiers, encoder-decoders, transformers' own adapter methods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from packaging import version
from peft import LoraConfig, PeftModel
from transformers.integrations.peft import MIN_PEFT_VERSION

from tests.models import tiny_model
from tests.tuner.adapters import LAYERS, adapted, config, inputs, logits, train_a_little

GENERATE = {"max_new_tokens": 4, "do_sample": False}


# On a LoRA --------------------------------------------------------------------------------------


def lora() -> Any:
    """A LoRA model whose start is an edit."""
    chosen = LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    return peft.get_peft_model(tiny_model("llama", layers=LAYERS), chosen).eval()


@pytest.mark.parametrize("component", ["block_output", "mlp_output", "attention_head[1]"])
def test_on_a_lora_both_are_trained_saved_and_loaded(component: str, tmp_path: Path) -> None:
    below = lora()
    model: Any = peft.get_peft_model(below, config(positions="f1+l1", component=component)).eval()
    before = {name: p.clone() for name, p in model.named_parameters() if p.requires_grad}
    train_a_little(model)
    changed = [name for name, p in model.named_parameters() if p.requires_grad and not torch.equal(p, before[name])]
    assert changed == list(before)
    assert {name.split(".")[-3] for name in changed} == {"lora_A", "lora_B", "intervention_0"}
    model.save_pretrained(str(tmp_path / "reft"))
    below.save_pretrained(str(tmp_path / "lora"))

    again: Any = PeftModel.from_pretrained(tiny_model("llama", layers=LAYERS), str(tmp_path / "lora"))
    again = PeftModel.from_pretrained(again, str(tmp_path / "reft")).eval()
    assert torch.equal(logits(again), logits(model))
    given = {**inputs(), **GENERATE}
    assert torch.equal(again.generate(**given), model.generate(**given))


def test_unload_leaves_the_lora_below_as_it_was() -> None:
    below = lora()
    before = logits(below)
    model: Any = peft.get_peft_model(below, config())
    assert not torch.equal(logits(model), before)
    assert model.unload() is below
    assert torch.equal(logits(below), before)
    assert "default" in below.peft_config


def test_a_lora_that_is_added_on_top() -> None:
    chosen = LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    model: Any = peft.get_peft_model(adapted(positions="f1+l1"), chosen).eval()
    wanted: Any = peft.get_peft_model(lora(), config(positions="f1+l1")).eval()
    values = {name.split("model.layers.")[-1]: p for name, p in model.named_parameters()}
    with torch.no_grad():
        for name, p in wanted.named_parameters():
            p.copy_(values[name.split("model.layers.")[-1]])
    assert torch.equal(logits(model), logits(wanted))


# Classifiers and encoder-decoders ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_the_classifier_is_trained_and_saved_too(kind: str, tmp_path: Path) -> None:
    model = adapted(kind, positions="f1")
    given = inputs(kind)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert any("classifier.modules_to_save.default" in name for name in trained)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    before = {name: p.clone() for name, p in model.named_parameters()}
    model(**given, labels=torch.tensor([0, 1, 2])).loss.backward()
    optimizer.step()
    assert {name for name, p in model.named_parameters() if not torch.equal(p, before[name])} == trained
    model.save_pretrained(str(tmp_path))
    again = PeftModel.from_pretrained(tiny_model(kind, layers=LAYERS), str(tmp_path)).eval()
    assert torch.equal(logits(again, given), logits(model, given))


@pytest.mark.parametrize("layers, stacks", [([0], {"encoder"}), ([-1], {"decoder"}), ("all", {"encoder", "decoder"})])
def test_encoder_and_decoder(layers: Any, stacks: set[str], tmp_path: Path) -> None:
    base = tiny_model("t5", layers=LAYERS)
    given, before = inputs("t5"), logits(base, inputs("t5"))
    chosen = config("t5", positions="f1+l1", layers=layers)
    model: Any = peft.get_peft_model(base, chosen).eval()
    assert {name.split(".")[2] for name, p in model.named_parameters() if p.requires_grad} == stacks
    after = logits(model, given)
    assert not torch.equal(after, before)
    labels = given["decoder_input_ids"]
    model.train()(**given, labels=labels).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    model.eval().save_pretrained(str(tmp_path))
    again: Any = PeftModel.from_pretrained(tiny_model("t5", layers=LAYERS), str(tmp_path)).eval()
    assert torch.equal(logits(again, given), logits(model, given))
    del given["decoder_input_ids"]
    assert torch.equal(again.generate(**given, **GENERATE), model.generate(**given, **GENERATE))


# Without a PeftModel --------------------------------------------------------------------------------------


@pytest.fixture
def saved_base(tmp_path: Path) -> str:
    """A directory with a base model."""
    tiny_model("llama", layers=LAYERS).save_pretrained(str(tmp_path / "base"))
    return str(tmp_path / "base")


def loaded(directory: str) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(directory).eval()


# 5.24 asks for a PEFT that is not out
needs_its_peft = pytest.mark.skipif(
    version.parse(peft.__version__) < version.parse(MIN_PEFT_VERSION),
    reason="transformers' own methods want a newer PEFT",
)


@needs_its_peft
def test_transformers_own_methods(saved_base: str) -> None:
    model = loaded(saved_base)
    base = logits(model)
    model.add_adapter(config(positions="f1+l1"), "one")
    first = logits(model)
    model.add_adapter(config(positions="f2"), "two")
    second = logits(model)
    assert model.active_adapters() == ["two"]
    assert not torch.equal(first, base)
    assert not torch.equal(first, second)
    model.set_adapter("one")
    assert torch.equal(logits(model), first)
    model.set_adapter(["one", "two"])
    with pytest.raises(ValueError, match="overlapping"):
        logits(model)
    model.set_adapter("one")
    assert torch.equal(logits(model), first)
    model.disable_adapters()
    assert torch.equal(logits(model), base)
    model.enable_adapters()
    assert torch.equal(logits(model), first)
    model.delete_adapter("two")
    assert torch.equal(logits(model), first)
    assert not any(".two." in name for name, _ in model.named_parameters())


def test_transformers_own_generate_knows_the_prompt(saved_base: str, tmp_path: Path) -> None:
    chosen = {"positions": "f1+l1", "init": "random"}
    wrapped: Any = peft.get_peft_model(loaded(saved_base), config(**chosen)).eval()
    wrapped.save_pretrained(str(tmp_path / "adapter"))
    given = {**inputs(), **GENERATE}
    wanted = wrapped.generate(**given)

    from_adapter = loaded(str(tmp_path / "adapter"))
    model = loaded(saved_base)
    model.load_adapter(str(tmp_path / "adapter"))
    for each in (from_adapter, model):
        assert not isinstance(each, PeftModel)
        assert torch.equal(logits(each), logits(wrapped))
        assert torch.equal(each.generate(**given), wanted)
        # as one prefill without a cache would see it: the prompt stays the prompt
        uncached = each.generate(**given, use_cache=False)
        assert torch.equal(uncached, wanted)


@needs_its_peft
def test_an_adapter_is_saved_by_transformers(saved_base: str, tmp_path: Path) -> None:
    model = loaded(saved_base)
    model.add_adapter(config(positions="l2"))
    model.save_pretrained(str(tmp_path / "adapter"))
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    again = PeftModel.from_pretrained(loaded(saved_base), str(tmp_path / "adapter")).eval()
    assert torch.equal(logits(again), logits(model))


def test_injection_into_a_model_in_place() -> None:
    model = tiny_model("llama", layers=LAYERS)
    injected: Any = peft.inject_adapter_in_model(config(positions="l1"), model)
    assert injected is model
    state = peft.get_peft_model_state_dict(model)
    assert {name.rsplit(".", 1)[1] for name in state} == set("RWb")
    fresh: Any = peft.inject_adapter_in_model(config(positions="l1"), tiny_model("llama", layers=LAYERS))
    assert not torch.equal(logits(fresh), logits(model))
    peft.set_peft_model_state_dict(fresh, state)
    assert torch.equal(logits(fresh), logits(model))
