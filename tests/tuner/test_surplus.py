"""Tensors in an adapter's file that are not the adapter's are told, by whatever way it is loaded."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTuner
from safetensors.torch import load_file, save_file

from reftune.adapter_files import adapter_config
from reftune.errors import ReftuneError
from reftune.models import put_adapter
from reftune.tuner.surplus import SurplusWarning
from tests.models import tiny_model

from .adapters import adapted, config, logits

HEAD = "base_model.model.lm_head.weight"
NORM = "base_model.model.model.norm.weight"


def base(layers: int = 2) -> Any:
    return tiny_model("llama", layers=layers)


def by_from_pretrained(folder: Path) -> Any:
    return PeftModel.from_pretrained(base(), str(folder))


def by_load_adapter(folder: Path) -> Any:
    model = get_peft_model(base(), config(), adapter_name="first")
    model.load_adapter(str(folder), adapter_name="default")
    model.set_adapter("default")
    return model


def by_auto(folder: Path) -> Any:
    base().save_pretrained(folder / "base")
    return AutoPeftModelForCausalLM.from_pretrained(str(folder))


def by_transformers(folder: Path) -> Any:
    model = base()
    model.load_adapter(str(folder))
    return model


# transformers' own load_adapter reads the file by itself, and tells of what it does not know in its log
WAYS = [by_from_pretrained, by_load_adapter, by_auto]


# PEFT 0.20 tells nobody what it is about to load; `put_adapter` refuses it all the same, in words of its own
ASKS = hasattr(BaseTuner, "_remap_adapter_state_dict_for_load")


def told(match: str) -> Any:
    return pytest.warns(SurplusWarning, match=match) if ASKS else nullcontext()


def saved(folder: Path, more: dict[str, torch.Tensor] | None = None, **fields: Any) -> Path:
    model = adapted(**fields)
    model.peft_config["default"].base_model_name_or_path = str(folder / "base")
    model.save_pretrained(folder)
    file = folder / "adapter_model.safetensors"
    save_file({**load_file(file), **(more or {})}, file)
    return folder


@pytest.mark.parametrize("way", WAYS)
def test_the_layers_of_a_deeper_base_are_told(way: Any, tmp_path: Path) -> None:
    saved(tmp_path, depth=4, layers="all")
    with told(r"6 tensors without a place.*layers\.2\..*made for another base"):
        way(tmp_path)
    why = "without a place" if ASKS else "that are not the adapter's"
    with pytest.raises(ReftuneError, match=rf"cannot be put on 'shallow': .*6 tensors {why}.*layers\.2\."):
        put_adapter(base(), tmp_path, adapter_config(tmp_path), name="shallow")


@pytest.mark.parametrize("way", WAYS)
def test_weights_of_the_base_in_the_file_are_told(way: Any, tmp_path: Path) -> None:
    saved(tmp_path, {NORM: torch.full((32,), 2.0), HEAD: base().lm_head.weight.detach() * 2})
    with told(r"change 2 tensors of the base.*lm_head\.weight.*norm\.weight"):
        way(tmp_path)
    why = "change 2 tensors of the base" if ASKS else "2 tensors that are not the adapter's"
    with pytest.raises(ReftuneError, match=why):
        put_adapter(base(), tmp_path, adapter_config(tmp_path), name="base")


@pytest.mark.parametrize(
    "fields", [{}, {"modules_to_save": ["lm_head"]}, {"target_modules": ["embed_tokens"]}], ids=str
)
@pytest.mark.parametrize("way", WAYS)
def test_what_is_saved_is_loaded_without_a_word(way: Any, fields: dict[str, Any], tmp_path: Path) -> None:
    saved(tmp_path, **fields)
    with warnings.catch_warnings():
        warnings.simplefilter("error", SurplusWarning)
        found = way(tmp_path)
        again = put_adapter(base(), tmp_path, adapter_config(tmp_path), name="base")
    assert torch.equal(logits(again.eval()), logits(found.eval()))


def test_an_adapter_does_not_overwrite_another(tmp_path: Path) -> None:
    model = get_peft_model(base(), config(), adapter_name="first")
    key = next(name for name, _ in model.named_parameters() if "intervention_" in name)
    saved(tmp_path, {key: torch.ones(2, 32)})
    with told(r"of another adapter: .*\.first\."):
        model.load_adapter(str(tmp_path), adapter_name="default")
