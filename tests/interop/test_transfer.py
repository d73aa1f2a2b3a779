"""An adapter carried to another model.

The other model is the first with its residual stream turned by a random rotation, so that what is right is known: all
of the edit arrives.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import get_peft_model

import reftune
from reftune.errors import ReftuneError
from reftune.interop.transfer import matched_layer, transfer
from reftune.models import load_adapter, save_adapter
from tests.training.text_models import save_base

PROMPTS = [" ".join(f"w{1 + (7 * i + j * j) % 40}" for j in range(6 + i % 5)) for i in range(60)]


def test_layers_are_matched_by_depth() -> None:
    assert [matched_layer(i, 4, 4) for i in range(4)] == [0, 1, 2, 3]
    assert [matched_layer(i, 4, 8) for i in range(4)] == [1, 3, 5, 7]
    assert [matched_layer(i, 6, 3) for i in range(6)] == [0, 0, 1, 1, 2, 2]


@torch.no_grad()
def turned(model, Q: torch.Tensor):
    """The same function, with states Qh in place of h; RMS norms without weights let a rotation through."""
    inner = model.model
    for norm in [inner.norm, *(n for b in inner.layers for n in (b.input_layernorm, b.post_attention_layernorm))]:
        assert bool((norm.weight == 1).all())
    inner.embed_tokens.weight.copy_(inner.embed_tokens.weight @ Q.mT)
    if model.lm_head.weight.data_ptr() != inner.embed_tokens.weight.data_ptr():
        model.lm_head.weight.copy_(model.lm_head.weight @ Q.mT)
    for block in inner.layers:
        attention, mlp = block.self_attn, block.mlp
        for reads in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
            reads.weight.copy_(reads.weight @ Q.mT)
        for writes in (attention.o_proj, mlp.down_proj):
            writes.weight.copy_(Q @ writes.weight)
    return model


@pytest.mark.parametrize("kind", ["loreft", "direft"])
def test_all_of_the_edit_arrives_where_models_differ_by_a_rotation(kind: str, tmp_path: Path) -> None:
    save_base(tmp_path / "one")
    save_base(tmp_path / "two")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "one")
    width = model.config.hidden_size
    Q = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(3))).Q
    turned(AutoModelForCausalLM.from_pretrained(tmp_path / "two"), Q).save_pretrained(tmp_path / "two")
    torch.manual_seed(1)
    config = reftune.ReftConfig(intervention=kind, positions="f1+l2", tie="group", init="random", task_type="CAUSAL_LM")
    save_adapter(get_peft_model(model, config), tmp_path / "adapter")
    folder, matched, note = transfer(
        str(tmp_path / "adapter"), tmp_path / "carried", target=str(tmp_path / "two"), prompts=PROMPTS
    )
    assert note is None and all(pair.there > 0.99 and pair.back > 0.99 for pair in matched)
    own, tokenizer = load_adapter(tmp_path / "adapter")
    other, _ = load_adapter(folder)
    ids = tokenizer("w3 w1 w4 w1 w5 w9", return_tensors="pt").input_ids
    with torch.no_grad():
        wanted, found = own(ids).logits, other(ids).logits
        with own.disable_adapter():
            effect = (wanted - own(ids).logits).norm()
    assert (found - wanted).norm() < 0.1 * effect
    with pytest.raises(ReftuneError, match="too few"):
        transfer(str(tmp_path / "adapter"), tmp_path / "no", target=str(tmp_path / "two"), prompts=PROMPTS[:3])
