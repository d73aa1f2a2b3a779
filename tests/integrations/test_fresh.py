"""An untrained adapter for tools that can only go on with one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, set_seed

from reftune import ReftuneError
from reftune.integrations.block import reft_config
from reftune.integrations.fresh import fresh_adapter
from reftune.models import load_adapter, save_adapter
from tests.models import random_tokens, tiny_model
from tests.training.text_models import save_base

BLOCK = {"r": 2, "positions": "f1+l2", "layers": [0, -1]}


def test_it_is_what_the_whole_model_would_be_given(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    (base / "model.safetensors").rename(tmp_path / "weights")
    fresh_adapter(str(base), tmp_path / "fresh", BLOCK, style="messages", seed=3)
    (tmp_path / "weights").rename(base / "model.safetensors")
    set_seed(3)
    model = AutoModelForCausalLM.from_pretrained(base)
    save_adapter(get_peft_model(model, reft_config(BLOCK)), tmp_path / "other")
    one, other = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("fresh", "other"))
    assert one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    configs = [(tmp_path / name / "adapter_config.json").read_text() for name in ("fresh", "other")]
    assert configs[0] == configs[1]

    made, _ = load_adapter(tmp_path / "fresh")
    assert made.peft_config["default"].prompt_style.style == "messages"  # type: ignore[union-attr]
    ids = random_tokens(2, 6) % 60
    with torch.no_grad(), made.disable_adapter():
        expected = made(input_ids=ids).logits
    assert torch.equal(made(input_ids=ids).logits, expected)


def test_what_cannot_be_made_is_told(tmp_path: Path) -> None:
    base = str(save_base(tmp_path / "base"))
    with pytest.raises(ReftuneError, match="layer 7 does not exist"):
        fresh_adapter(base, tmp_path / "fresh", {"layers": 7})
    assert not (tmp_path / "fresh").exists()
    fresh_adapter(base, tmp_path / "fresh")
    with pytest.raises(ReftuneError, match="holds an adapter already"):
        fresh_adapter(base, tmp_path / "fresh")
    tiny_model("bert").save_pretrained(tmp_path / "bert")
    with pytest.raises(ReftuneError, match="an encoder"):
        fresh_adapter(str(tmp_path / "bert"), tmp_path / "other")
    tiny_model("t5").save_pretrained(tmp_path / "t5")
    with pytest.raises(ReftuneError, match="no causal language model"):
        fresh_adapter(str(tmp_path / "t5"), tmp_path / "other")
