"""Given steering vectors: set per layer, saved, loaded, added where they should be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model

from reftune import ReftConfig
from tests.models import HIDDEN, random_tokens, tiny_model


def steered(**fields: Any) -> Any:
    chosen = {"intervention": "steer", "vector": "given", "layers": [1, 2], "positions": "l1", **fields}
    return get_peft_model(tiny_model("llama"), ReftConfig(task_type="CAUSAL_LM", **chosen)).eval()


def states(model: Any) -> tuple[torch.Tensor, ...]:
    with torch.no_grad():
        return model(random_tokens(2, 6), output_hidden_states=True).hidden_states


def test_the_vector_is_added_at_its_layer_and_position() -> None:
    model = steered()
    base = states(model)
    v = torch.randn(HIDDEN)
    model.set_vectors({1: v}, strength=3.0)
    edited = states(model)
    assert torch.equal(base[1], edited[1])
    # hidden_states[0] are the embeddings, so block 1 is element 2
    torch.testing.assert_close(edited[2][:, -1], base[2][:, -1] + 3.0 * v)
    assert torch.equal(base[2][:, :-1], edited[2][:, :-1])


def test_given_vectors_are_saved_and_only_the_strength_is_trained(tmp_path: Path) -> None:
    model = steered()
    model.set_vectors({1: torch.randn(HIDDEN), 2: torch.randn(HIDDEN)}, strength=0.5)
    assert {name.rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad} == {"a"}
    model.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(tiny_model("llama"), str(tmp_path)).eval()
    assert all(torch.equal(a, b) for a, b in zip(states(model), states(loaded), strict=True))


def test_wrong_layers_and_widths_are_refused() -> None:
    model = steered()
    with pytest.raises(ValueError, match=r"layers \[0\] .* it steers \[1, 2\]"):
        model.set_vectors({0: torch.zeros(HIDDEN)})
    with pytest.raises(ValueError, match="must be"):
        model.set_vectors({1: torch.zeros(3)})
