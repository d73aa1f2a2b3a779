"""What is saved is loaded again bit for bit: files, keys, sizes, copies and pickles."""

from __future__ import annotations

import copy
import io
import warnings
from pathlib import Path
from typing import Any, ClassVar

import peft
import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn

from reftune import INTERVENTIONS, Intervention, InterventionOptions
from reftune.config import TIES
from tests.models import tiny_model
from tests.tuner.adapters import LAYERS, adapted, inputs, logits, train_a_little

FILES = {"adapter_config.json", "adapter_model.safetensors", "README.md"}


def reloaded(directory: Path, kind: str = "llama", **more: Any) -> Any:
    """The adapter in `directory` on a new base model."""
    return PeftModel.from_pretrained(tiny_model(kind, layers=LAYERS), str(directory), **more).eval()


@pytest.mark.parametrize("tie", TIES)
@pytest.mark.parametrize("intervention", INTERVENTIONS)
def test_save_and_load_give_the_same_logits_bit_for_bit(intervention: str, tie: str, tmp_path: Path) -> None:
    model = train_a_little(adapted(intervention=intervention, tie=tie, positions="f2+l1"))
    before = logits(model)
    assert not torch.equal(before, logits(tiny_model("llama", layers=LAYERS)))
    model.save_pretrained(str(tmp_path))
    again = reloaded(tmp_path)
    assert torch.equal(logits(again), before)
    saved = {name: p for name, p in model.state_dict().items() if "intervention_" in name}
    assert saved
    assert all(torch.equal(again.state_dict()[name], p) for name, p in saved.items())


@pytest.mark.parametrize("kind", ["gpt2", "bloom", "bert", "t5"])
def test_save_and_load_other_models(kind: str, tmp_path: Path) -> None:
    model = adapted(kind, positions="f1+l2")
    model.save_pretrained(str(tmp_path))
    assert torch.equal(logits(reloaded(tmp_path, kind), inputs(kind)), logits(model, inputs(kind)))


def test_only_the_adapter_is_written(tmp_path: Path) -> None:
    adapted().save_pretrained(str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == FILES


def test_names_in_the_file(tmp_path: Path) -> None:
    adapted(tie="group", positions="f1+l1", name="some.name".replace(".", "_")).save_pretrained(str(tmp_path))
    found = load_file(tmp_path / "some_name" / "adapter_model.safetensors")
    block = "base_model.model.model.layers.{}.hidden_edit.intervention_{}.{}"
    assert set(found) == {block.format(i, j, name) for i in range(LAYERS) for j in range(2) for name in "RWb"}
    assert found[block.format(0, 0, "R")].shape == (2, 32)


def test_size_of_the_file(tmp_path: Path) -> None:
    base = tiny_model("llama", layers=1, overrides={"hidden_size": 576, "intermediate_size": 64})
    model = peft.get_peft_model(base, peft.get_peft_config({"peft_type": "REFT", "r": 4, "task_type": "CAUSAL_LM"}))
    model.save_pretrained(str(tmp_path))
    # two matrices of 4 × 576 and 4 biases in float32 are 18.4 kB
    assert (tmp_path / "adapter_model.safetensors").stat().st_size < 25_000


def test_auto_class(tmp_path: Path) -> None:
    base = tiny_model("llama", layers=LAYERS)
    base.save_pretrained(str(tmp_path / "base"))
    model: Any = peft.get_peft_model(
        AutoPeftModelForCausalLM._target_class.from_pretrained(str(tmp_path / "base")),
        peft.get_peft_config({"peft_type": "REFT", "task_type": "CAUSAL_LM", "init_weights": False}),
    ).eval()
    model.save_pretrained(str(tmp_path / "adapter"))
    again: Any = AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "adapter")).eval()
    assert torch.equal(logits(again), logits(model))
    assert again.peft_config["default"].inference_mode
    assert not any(p.requires_grad for p in again.parameters())


@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
def test_loading_on_the_meta_device_first(low_cpu_mem_usage: bool, tmp_path: Path) -> None:
    model = train_a_little(adapted(positions="f1+l1"))
    model.save_pretrained(str(tmp_path))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(missing|unexpected).*")
        again = reloaded(tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
        again.load_adapter(str(tmp_path), "other", low_cpu_mem_usage=low_cpu_mem_usage)
    assert not any(p.is_meta for p in again.parameters())
    again.set_adapter("other")
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [True, False])
def test_dtypes_survive(dtype: torch.dtype, autocast: bool, tmp_path: Path) -> None:
    def base() -> Any:
        return tiny_model("llama", layers=LAYERS, dtype=dtype)

    chosen = peft.get_peft_config({"peft_type": "REFT", "positions": "f1+l1", "init_weights": False})
    model = peft.get_peft_model(base(), chosen, autocast_adapter_dtype=autocast).eval()
    model.save_pretrained(str(tmp_path))
    again = PeftModel.from_pretrained(base(), str(tmp_path), autocast_adapter_dtype=autocast).eval()
    wanted = torch.float32 if autocast else dtype
    assert {p.dtype for name, p in again.named_parameters() if "intervention_" in name} == {wanted}
    assert logits(again).dtype == dtype
    assert torch.equal(logits(again), logits(model))


# Copies ----------------------------------------------------------------------------------


def test_a_deep_copy_is_a_model_of_its_own() -> None:
    model = adapted(positions="f1+l1")
    before, given = logits(model), inputs()
    tokens = model.generate(**given, max_new_tokens=3, do_sample=False)
    twin = copy.deepcopy(model)
    assert torch.equal(logits(twin), before)
    train_a_little(model)
    assert not torch.equal(logits(model), before)
    assert torch.equal(logits(twin), before)
    assert torch.equal(twin.generate(**given, max_new_tokens=3, do_sample=False), tokens)


def test_the_whole_model_can_be_pickled() -> None:
    model = adapted(positions="f1+l1", tie="none")
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert torch.equal(logits(again), logits(model))
    given = {**inputs(), "max_new_tokens": 3, "do_sample": False}
    assert torch.equal(again.generate(**given), model.generate(**given))


# An intervention of one's own ----------------------------------------------------------------------------------


class Shift(Intervention):
    """Φ(h) = h + b: the least that can be trained."""

    has_subspaces: ClassVar[bool] = False

    b: nn.Parameter

    @classmethod
    def parameter_shapes(cls, d: int, options: InterventionOptions) -> dict[str, tuple[int, ...]]:
        return {"b": (d,)}

    def initialise(self, init: str) -> None:
        if init == "random":
            self.b.normal_()
        else:
            self.b.zero_()

    def edit(self, h: Tensor, rank_mask: Tensor | None) -> Tensor:
        return self.b.to(h.dtype).expand_as(h)


def test_an_intervention_that_a_user_registers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(INTERVENTIONS, "shift", Shift)
    model = adapted(intervention="shift", init="identity", positions="l2")
    assert torch.equal(logits(model), logits(tiny_model("llama", layers=LAYERS)))
    before = logits(model)
    train_a_little(model)
    assert not torch.equal(logits(model), before)
    model.save_pretrained(str(tmp_path))
    again = reloaded(tmp_path)
    given = {**inputs(), "max_new_tokens": 4, "do_sample": False}
    assert torch.equal(logits(again), logits(model))
    assert torch.equal(again.generate(**given), model.generate(**given))


def test_an_intervention_that_is_not_registered_here_is_refused_on_loading(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(INTERVENTIONS, "shift", Shift)
        adapted(intervention="shift").save_pretrained(str(tmp_path))
    with pytest.raises(ValueError, match=r"intervention='shift' is not valid.*'loreft'"):
        reloaded(tmp_path)
